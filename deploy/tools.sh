#!/usr/bin/env bash
# Install the Debian packages that `make serve-check` needs, if they are missing and this may install packages. Those
# that are still missing are named; the checks that need them are then reported as skipped, with the reason.
set -euo pipefail
packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); } # PROGRAM PACKAGE
need chromium chromium
need wrk wrk
need prometheus prometheus
need prometheus-node-exporter prometheus-node-exporter
[ ${#packages[@]} -gt 0 ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "encore: installing ${packages[*]} ..."
  export DEBIAN_FRONTEND=noninteractive
  mkdir -p .cache
  { apt-get update -q && apt-get install -y -q --no-install-recommends "${packages[@]}"; } >.cache/tools.log 2>&1 && exit 0
  echo "encore: apt-get failed, see .cache/tools.log" >&2
fi
echo "encore: missing, and their checks are skipped: ${packages[*]} (Debian: apt-get install ${packages[*]})" >&2
