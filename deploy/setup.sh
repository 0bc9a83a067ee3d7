#!/usr/bin/env bash
# Create VENV from the lock file, and add the jars that pyspark lacks to Spark's own.
#   deploy/setup.sh VENV UV_VERSION [s3]
# For each missing prerequisite, one sentence says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 uv_version=$2 part=${3:-}

fail() { echo "encore: $*" >&2; exit 4; }

python=""
for candidate in python3.11 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    python=$candidate; break
  fi
done
[ -n "$python" ] || fail "Python 3.11 is missing: install it (Debian: apt-get install python3.11 python3.11-venv; macOS: brew install python@3.11) and put python3.11 on the PATH."

java=${JAVA_HOME:+$JAVA_HOME/bin/}java
command -v "$java" >/dev/null || fail "Java 17 is missing: install it (Debian: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk@17) and put it on the PATH or in JAVA_HOME."
version=$("$java" -version 2>&1 | sed -nE '1s/.*version "([0-9]+).*/\1/p')
[ "$version" = 17 ] || [ "$version" = 21 ] || fail "Java 17 is needed, $java is version ${version:-unknown}: install Java 17 and set JAVA_HOME to it."

jars() { # CONF: resolve deploy/jars/ivy.xml with the Ivy that pyspark ships
  local folder; folder=$("$venv/bin/python" -c 'import pathlib, pyspark; print(pathlib.Path(pyspark.__file__).parent / "jars")')
  echo "encore: fetching jars ($1) ..."
  "$java" -jar "$folder"/ivy-*.jar -settings deploy/jars/ivysettings.xml -ivy deploy/jars/ivy.xml -cache .cache/ivy \
    -confs "$1" -retrieve "$folder/[artifact]-[revision].[ext]" >.cache/ivy.log 2>&1 ||
    fail "the jars ($1) could not be fetched from Maven Central: see .cache/ivy.log, check the network and run make again."
}

mkdir -p .cache
if [ "$part" = s3 ]; then
  jars s3
  exit 0
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || fail "python3.11 cannot make a virtual environment: install python3.11-venv."
echo "encore: installing the locked packages into $venv ..."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version" ||
  fail "pip could not install uv $uv_version: check the network and run make again."
# UV_LINK_MODE: hard links fail, with warnings, if the cache is on another disk
# --compile-bytecode: Python caches none itself where PYTHONDONTWRITEBYTECODE is set, and commands then start 0.5 s later
UV_LINK_MODE=${UV_LINK_MODE:-copy} "$venv/bin/uv" pip install --quiet --compile-bytecode --python "$venv/bin/python" --require-hashes -r deploy/requirements.txt ||
  fail "the locked packages could not be installed: check the network and run make again."
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e . ||
  fail "the package itself could not be installed."
jars delta
