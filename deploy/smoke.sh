#!/usr/bin/env bash
# Deploy a stage, run the pipeline in it on generated data, check the result, and remove the stage again, whatever fails
# in between. The exit code is that of the first step that failed.
#
#   deploy/smoke.sh STAGE [PLAYLISTS]
#
# RUN_PROFILE and REMOVE_PROFILE: profiles of the AWS configuration, where those of the caller are not to be used.
set -u -o pipefail
stage=$1 playlists=${2:-2000}
data=$(mktemp -d)
code=0 removed=

as() { # PROFILE COMMAND...
	if [ -n "$1" ]; then AWS_PROFILE=$1 "${@:2}"; else "${@:2}"; fi
}

step() { # NAME COMMAND...
	[ "$code" -eq 0 ] || return 0
	echo "smoke: $1" >&2
	"${@:2}" || { code=$?; echo "smoke: $1 failed with exit code $code" >&2; }
}

clean() {
	[ -z "$removed" ] || return 0
	removed=yes
	rm -rf "$data"
	echo "smoke: remove" >&2
	as "${RUN_PROFILE:-}" encore deploy stop --stage "$stage" --cancel ||
		echo "smoke: the application was not stopped; its stack may not be deleted" >&2
	as "${REMOVE_PROFILE:-}" encore deploy remove --stage "$stage" || {
		local failed=$?
		echo "smoke: remove failed with exit code $failed: what is left of $stage is billed" >&2
		[ "$code" -ne 0 ] || code=$failed
	}
}

as "${REMOVE_PROFILE:-}" encore deploy vacant --stage "$stage" || { code=$?; rm -rf "$data"; exit "$code"; }
trap clean EXIT
trap 'code=130; exit 130' INT
trap 'code=143; exit 143' TERM

step generate encore generate --playlists "$playlists" --out "$data"
step deploy make --no-print-directory deploy STAGE="$stage" STACKS="encore-$stage-*" ${PACKAGED:+PACKAGED=$PACKAGED}
step upload as "${RUN_PROFILE:-}" encore deploy upload "$data" --stage "$stage"
step run as "${RUN_PROFILE:-}" encore deploy run --stage "$stage"
step verify as "${RUN_PROFILE:-}" encore deploy verify --stage "$stage" --playlists "$playlists"
clean
[ "$code" -eq 0 ] && echo "smoke: $stage was deployed, ran $playlists playlists, and was removed" >&2
exit "$code"
