#!/usr/bin/env bash
# On a Mac: finish zk0desk.app (launcher, icon, signatures), put it into a disk image, and have it notarised.
#   packaging/macos/dmg.sh zk0desk.app OUT.dmg
# Signing wants MACOS_IDENTITY ("Developer ID Application: ..."), notarisation MACOS_NOTARY_PROFILE (of `notarytool store-credentials`).
# What is missing is said, and the image is then not for release.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
app=${1:?usage: dmg.sh APP OUT.dmg} out=${2:?usage: dmg.sh APP OUT.dmg}
[ "$(uname)" = Darwin ] || { echo "A disk image is made and signed on a Mac: codesign and hdiutil are Apple's." >&2; exit 1; }

clang -arch arm64 -mmacosx-version-min=14.0 -Os -Wall -Wextra -Werror -o "$app/Contents/MacOS/zk0desk" "$here/zk0desk.c"

# Wheels for both processors carry both; this application is for one. Tools without an extension among Qt's files break
# notarisation; trimming has removed them.
find "$app" -type f \( -name '*.so' -o -name '*.dylib' -o -path '*.framework/Versions/*' \) -print0 | while IFS= read -r -d '' file; do
  if lipo -archs "$file" 2>/dev/null | grep -q 'x86_64.*arm64\|arm64.*x86_64'; then lipo "$file" -thin arm64 -output "$file"; fi
done

icons=$(mktemp -d)/zk0desk.iconset
mkdir -p "$icons"
pictures=$here/../../resources/icons/hicolor
for size in 16 32 128 256 512; do cp "$pictures/${size}x$size/apps/org.zk0.Desk.png" "$icons/icon_${size}x$size.png"; done
cp "$pictures/32x32/apps/org.zk0.Desk.png" "$icons/icon_16x16@2x.png"
cp "$pictures/64x64/apps/org.zk0.Desk.png" "$icons/icon_32x32@2x.png"
cp "$pictures/256x256/apps/org.zk0.Desk.png" "$icons/icon_128x128@2x.png"
cp "$pictures/512x512/apps/org.zk0.Desk.png" "$icons/icon_256x256@2x.png"
iconutil -c icns -o "$app/Contents/Resources/zk0desk.icns" "$icons"

sign() { codesign --force --timestamp --options runtime --sign "$MACOS_IDENTITY" "$@"; }
if [ -n "${MACOS_IDENTITY:-}" ]; then
  # From the inside out; the application last, with what it is entitled to.
  find "$app/Contents" -type f \( -name '*.so' -o -name '*.dylib' \) -print0 | while IFS= read -r -d '' file; do sign "$file"; done
  find "$app/Contents" -type d -name '*.framework' -print0 | while IFS= read -r -d '' framework; do sign "$framework"; done
  sign --entitlements "$here/entitlements.plist" "$app/Contents/Resources/python/bin/python3.12"
  sign --entitlements "$here/entitlements.plist" "$app"
  codesign --verify --deep --strict "$app"
else
  echo "warning: MACOS_IDENTITY is not set: the application is signed for this Mac alone and is not for release." >&2
  codesign --force --deep --sign - "$app"
fi

folder=$(mktemp -d)
cp -R "$app" "$folder/"
ln -s /Applications "$folder/Applications"
hdiutil create -quiet -volname zk0desk -srcfolder "$folder" -format ULMO -ov "$out"
rm -rf "$folder"

if [ -n "${MACOS_IDENTITY:-}" ] && [ -n "${MACOS_NOTARY_PROFILE:-}" ]; then
  codesign --timestamp --sign "$MACOS_IDENTITY" "$out"
  xcrun notarytool submit "$out" --keychain-profile "$MACOS_NOTARY_PROFILE" --wait
  xcrun stapler staple "$out"
else
  echo "warning: the image is not notarised: MACOS_IDENTITY and MACOS_NOTARY_PROFILE are needed for that." >&2
fi
