#!/bin/sh
# The Python of the application archive. It is started by the archive's own dynamic linker with the archive's own C
# library, so that it needs nothing of the node but a shell.
case $0 in */*) folder=${0%/*} ;; *) folder=. ;; esac
home=$(CDPATH='' cd -- "$folder/.." && pwd) || exit 127
libraries=$home/lib/x86_64-linux-gnu

# libraries of the node would need the node's C library; another Python's home has other modules
unset LD_PRELOAD LD_AUDIT PYTHONHOME
# Debian's folder of certificates does not exist on other systems
if [ -z "${SSL_CERT_FILE-}${SSL_CERT_DIR-}" ]; then
  export SSL_CERT_FILE="$home/lib/python3.11/dist-packages/certifi/cacert.pem"
fi
# The given path takes the place of LD_LIBRARY_PATH, which the JVM may have set. -s: no packages from home folders.
exec "$libraries/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$libraries" --argv0 "$home/bin/${0##*/}" \
  "$home/libexec/python3.11" -s "$@"
