# One job: job.sh MODE SIGN OUT NUMBER signs 20 messages. Each attempt leaves NAME.msg, and NAME.sig or NAME.err.
# Sourced by a shell that runs many as background jobs, or run by a bash of its own.
one() {
	local mode=$1 sign=$2 out=$3 name=$4 message=$5
	case $mode in
	descriptor)
		{
			printf %s "$message" >&3 && cat <&3 >"$out/$name.sig"
		} 3<>"$sign"
		;;
	slot)
		printf %s "$message" >"$sign.d/$name" && cat "$sign.d/$name" >"$out/$name.sig" && rm "$sign.d/$name"
		;;
	dropbox)
		printf %s "$message" >"$sign" && cat "$sign" >"$out/$name.sig"
		;;
	esac
}

job() {
	local mode=$1 sign=$2 out=$3 number=$4 i name message
	for ((i = 0; i < 20; i++)); do
		name=sh-$mode-$number-$i
		message="$name $RANDOM$RANDOM"
		printf %s "$message" >"$out/$name.msg"
		one "$mode" "$sign" "$out" "$name" "$message" 2>"$out/$name.err" && rm "$out/$name.err"
	done
}

if [ $# = 4 ]; then
	job "$@"
fi
