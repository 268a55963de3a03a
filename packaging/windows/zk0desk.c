/* Starts zk0desk with the Python beside it: zk0desk.exe opens the window, zk0desk-cli.exe (with CONSOLE defined) is the command line.
   It starts python.org's own, signed interpreter and is none itself: `sys.executable` then is an interpreter, as libraries expect. */
#include <stdio.h>
#include <windows.h>
#include <wchar.h>

#define LIMIT 32767

static wchar_t path[LIMIT], folder[LIMIT], command[LIMIT];

static int fail(const wchar_t *what)
{
#ifdef CONSOLE
    fwprintf(stderr, L"%ls\n", what);
#else
    MessageBoxW(NULL, what, L"zk0desk", MB_OK | MB_ICONERROR);
#endif
    return 1;
}

/* What stands after the program's own name, as it was typed. */
static const wchar_t *arguments(void)
{
    const wchar_t *rest = GetCommandLineW();
    if (*rest == L'"') {
        for (rest++; *rest && *rest != L'"'; rest++) {}
        if (*rest) rest++;
    } else {
        while (*rest && *rest != L' ' && *rest != L'\t') rest++;
    }
    while (*rest == L' ' || *rest == L'\t') rest++;
    return rest;
}

static int run(void)
{
    static const wchar_t *others[] = {L"PYTHONHOME", L"PYTHONPATH", L"PYTHONSTARTUP", L"PYTHONPYCACHEPREFIX",
                                      L"QT_PLUGIN_PATH", L"QT_QPA_PLATFORM_PLUGIN_PATH"};
    STARTUPINFOW start = {.cb = sizeof start};
    PROCESS_INFORMATION process;
    DWORD status = 1;
    DWORD length = GetModuleFileNameW(NULL, path, LIMIT);

    if (length == 0 || length >= LIMIT) return fail(L"zk0desk does not know its own folder.");
    wcscpy(folder, path);
    *wcsrchr(folder, L'\\') = 0;
#ifdef CONSOLE
    const wchar_t *python = L"python.exe";
#else
    const wchar_t *python = L"pythonw.exe";
#endif
    if (wcslen(folder) + wcslen(arguments()) + 64 >= LIMIT) return fail(L"The command line is too long.");
    _snwprintf(command, LIMIT, L"\"%ls\\python\\%ls\" -s -P -m zk0desk %ls", folder, python, arguments());
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) SetEnvironmentVariableW(others[i], NULL);
    SetEnvironmentVariableW(L"PYTHONNOUSERSITE", L"1");
    SetEnvironmentVariableW(L"PYTHONSAFEPATH", L"1");
    SetEnvironmentVariableW(L"ZK0DESK_LAUNCHER", path);
    AllowSetForegroundWindow(ASFW_ANY); /* a second start raises the first one's window */
    if (!CreateProcessW(NULL, command, NULL, NULL, TRUE, 0, NULL, NULL, &start, &process))
        return fail(L"zk0desk's Python could not be started. Its folder is damaged, or a security program holds it back. Install zk0desk again.");
#ifdef CONSOLE
    SetConsoleCtrlHandler(NULL, TRUE); /* Ctrl-C is for Python, which ends with a status of its own */
    WaitForSingleObject(process.hProcess, INFINITE);
    GetExitCodeProcess(process.hProcess, &status);
#else
    status = 0;
#endif
    CloseHandle(process.hThread);
    CloseHandle(process.hProcess);
    return (int)status;
}

#ifdef CONSOLE
int wmain(void)
{
    return run();
}
#else
int WINAPI wWinMain(HINSTANCE instance, HINSTANCE before, PWSTR line, int show)
{
    (void)instance; (void)before; (void)line; (void)show;
    return run();
}
#endif
