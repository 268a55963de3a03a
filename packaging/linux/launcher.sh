#!/bin/sh
# Starts zk0desk with the Python beside it, whatever the environment holds and wherever this folder lies.
case $0 in */*) me=$0 ;; *) me=$(command -v -- "$0") ;; esac
real=$(readlink -f -- "$me")
root=${real%/bin/*}
ZK0DESK_LAUNCHER=$(cd -- "${me%/*}/" && pwd)/${me##*/}
export ZK0DESK_LAUNCHER

libc=$(getconf GNU_LIBC_VERSION 2>/dev/null)
if [ "${libc##*.}" -lt @GLIBC_MINOR@ ] 2>/dev/null || [ "${libc#glibc 2.}" = "$libc" ]; then
  text="zk0desk needs a Linux with glibc 2.@GLIBC_MINOR@ or later; this one has ${libc:-none}. Debian 12 and Ubuntu 24.04 are recent enough."
  echo "$text" >&2
  if [ ! -t 2 ] && [ -n "$DISPLAY$WAYLAND_DISPLAY" ]; then
    zenity --error --no-markup --text "$text" 2>/dev/null || kdialog --error "$text" 2>/dev/null || xmessage "$text" 2>/dev/null
  fi
  exit 1
fi

# What is set for other Pythons and other Qts would load their files into this one. Python would ignore the bytecode that is
# shipped beside the sources if it were told to look for bytecode elsewhere.
unset PYTHONHOME PYTHONPATH PYTHONPLATLIBDIR PYTHONSTARTUP PYTHONPYCACHEPREFIX LD_LIBRARY_PATH QT_PLUGIN_PATH QT_QPA_PLATFORM_PLUGIN_PATH
# For the processes that zk0desk starts; this one has the flags.
export PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1
# The OpenSSL inside knows the certificates' place on the computer that built it, not on this one.
if [ -z "$SSL_CERT_FILE" ]; then
  for certificates in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
    if [ -r "$certificates" ]; then
      export SSL_CERT_FILE="$certificates"
      break
    fi
  done
fi
exec "$root/python/bin/python3.12" -s -P -m zk0desk_start "$@"
