; The installer: for one person, without an administrator. TREE, OUT, VERSION, SCHEME, EXTENSION, MIME, ID and STAMP come from the builder.
Unicode true
!include "MUI2.nsh"
!include "FileFunc.nsh"

Name "zk0desk"
OutFile "${OUT}"
InstallDir "$LOCALAPPDATA\Programs\zk0desk"
InstallDirRegKey HKCU "Software\zk0desk" "InstallDir"
RequestExecutionLevel user
ManifestDPIAware true
BrandingText "zk0desk ${VERSION}${STAMP}"
!ifdef FAST
  SetCompressor zlib
!else
  SetCompressor /SOLID lzma
  SetCompressorDictSize 64
!endif
VIProductVersion "${VERSION}.0"
VIAddVersionKey "ProductName" "zk0desk"
VIAddVersionKey "FileDescription" "zk0desk setup"
VIAddVersionKey "FileVersion" "${VERSION}"
VIAddVersionKey "LegalCopyright" "Apache License 2.0"

!define UNINSTALL "Software\Microsoft\Windows\CurrentVersion\Uninstall\zk0desk"
!define CLASSES "Software\Classes"

!define MUI_ICON "${TREE}\zk0desk.ico"
!define MUI_UNICON "${TREE}\zk0desk.ico"
!define MUI_FINISHPAGE_RUN "$INSTDIR\zk0desk.exe"
!insertmacro MUI_PAGE_DIRECTORY
!insertmacro MUI_PAGE_INSTFILES
!insertmacro MUI_PAGE_FINISH
!insertmacro MUI_UNPAGE_CONFIRM
!insertmacro MUI_UNPAGE_INSTFILES
!insertmacro MUI_LANGUAGE "English"
!insertmacro MUI_LANGUAGE "German"

; A window that is open is asked to close, which asks the person when the node runs; nothing is ended by force.
!macro CLOSE_WINDOW un
Function ${un}CloseWindow
  StrCpy $1 0
  again:
    FindWindow $0 "" "zk0desk"
    IntCmp $0 0 gone
    SendMessage $0 ${WM_CLOSE} 0 0 /TIMEOUT=5000
    Sleep 1000
    IntOp $1 $1 + 1
    IntCmp $1 30 0 again 0
    MessageBox MB_RETRYCANCEL|MB_ICONEXCLAMATION "zk0desk is open. Close its window, then try again." IDRETRY retry
    Abort
  retry:
    StrCpy $1 0
    Goto again
  gone:
FunctionEnd
!macroend
!insertmacro CLOSE_WINDOW ""
!insertmacro CLOSE_WINDOW "un."

Section "zk0desk"
  Call CloseWindow
  ; What an earlier version had and this one has not would be imported: the old tree goes first.
  RMDir /r "$INSTDIR\python"
  SetOutPath "$INSTDIR"
  File /r "${TREE}\*"
  WriteUninstaller "$INSTDIR\uninstall.exe"
  CreateShortcut "$SMPROGRAMS\zk0desk.lnk" "$INSTDIR\zk0desk.exe" "" "$INSTDIR\zk0desk.ico"
  WriteRegStr HKCU "Software\zk0desk" "InstallDir" "$INSTDIR"

  WriteRegStr HKCU "${CLASSES}\${SCHEME}" "" "URL:zk0desk invitation"
  WriteRegStr HKCU "${CLASSES}\${SCHEME}" "URL Protocol" ""
  WriteRegStr HKCU "${CLASSES}\${SCHEME}\DefaultIcon" "" "$INSTDIR\zk0desk.ico"
  WriteRegStr HKCU "${CLASSES}\${SCHEME}\shell\open\command" "" '"$INSTDIR\zk0desk.exe" "%1"'
  WriteRegStr HKCU "${CLASSES}\.${EXTENSION}" "" "${ID}.invitation"
  WriteRegStr HKCU "${CLASSES}\.${EXTENSION}" "Content Type" "${MIME}"
  WriteRegStr HKCU "${CLASSES}\${ID}.invitation" "" "Invitation to a zk0desk federation"
  WriteRegStr HKCU "${CLASSES}\${ID}.invitation\DefaultIcon" "" "$INSTDIR\zk0desk.ico"
  WriteRegStr HKCU "${CLASSES}\${ID}.invitation\shell\open\command" "" '"$INSTDIR\zk0desk.exe" "%1"'

  WriteRegStr HKCU "${UNINSTALL}" "DisplayName" "zk0desk"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayVersion" "${VERSION}"
  WriteRegStr HKCU "${UNINSTALL}" "DisplayIcon" "$INSTDIR\zk0desk.ico"
  WriteRegStr HKCU "${UNINSTALL}" "Publisher" "The zk0 contributors"
  WriteRegStr HKCU "${UNINSTALL}" "InstallLocation" "$INSTDIR"
  WriteRegStr HKCU "${UNINSTALL}" "UninstallString" '"$INSTDIR\uninstall.exe"'
  WriteRegDWORD HKCU "${UNINSTALL}" "NoModify" 1
  WriteRegDWORD HKCU "${UNINSTALL}" "NoRepair" 1
  ${GetSize} "$INSTDIR" "/S=0K" $0 $1 $2
  WriteRegDWORD HKCU "${UNINSTALL}" "EstimatedSize" $0
  System::Call 'shell32::SHChangeNotify(i 0x08000000, i 0, p 0, p 0)'
SectionEnd

Section "Uninstall"
  Call un.CloseWindow
  ; It shows what there is and how much, and asks itself; silently installed, silently removed, the data stay.
  IfSilent kept
  MessageBox MB_YESNO|MB_DEFBUTTON2|MB_ICONQUESTION "Also look at what zk0desk keeps of yours (settings, journal, the node's identity, the training engine), and remove it?" IDNO kept
  ExecWait '"$INSTDIR\zk0desk-cli.exe" --remove-data'
  kept:
  Delete "$SMPROGRAMS\zk0desk.lnk"
  RMDir /r "$INSTDIR\python"
  Delete "$INSTDIR\zk0desk.exe"
  Delete "$INSTDIR\zk0desk-cli.exe"
  Delete "$INSTDIR\zk0desk.ico"
  Delete "$INSTDIR\uninstall.exe"
  RMDir "$INSTDIR"
  DeleteRegValue HKCU "Software\Microsoft\Windows\CurrentVersion\Run" "zk0desk"
  DeleteRegKey HKCU "${CLASSES}\${SCHEME}"
  DeleteRegKey HKCU "${CLASSES}\.${EXTENSION}"
  DeleteRegKey HKCU "${CLASSES}\${ID}.invitation"
  DeleteRegKey HKCU "${UNINSTALL}"
  DeleteRegKey HKCU "Software\zk0desk"
  System::Call 'shell32::SHChangeNotify(i 0x08000000, i 0, p 0, p 0)'
SectionEnd
