# shellcheck shell=bash
# What quickstart, test and bench share: Go, packages, /dev/fuse. Sourced with the working directory at the root.

fail() {
	printf '%s: %s\n' "${0##*/}" "$1" >&2
	shift
	printf 'hint: %s\n' "$@" >&2
	exit 1
}

require_root() {
	if [ "$(id -u)" != 0 ]; then
		fail "needs root: it installs packages and mounts" "sudo $0 $*"
	fi
}

# sudo keeps /usr/local/go/bin out of PATH.
find_go() {
	local dir have want
	for dir in /usr/local/go/bin /usr/lib/go/bin /snap/bin; do
		if ! command -v go >/dev/null && [ -x "$dir/go" ]; then
			PATH="$PATH:$dir"
		fi
	done
	want=$(awk '$1 == "go" { print $2 }' go.mod)
	if ! command -v go >/dev/null; then
		fail "Go is missing: there is no go in PATH nor in /usr/local/go/bin" "unpack Go $want or newer from https://go.dev/dl/ into /usr/local"
	fi
	# Since 1.21 go reads go.mod itself, and says so where it is too old.
	if ! have=$(go env GOVERSION 2>&1); then
		fail "Go is too old: $have" "unpack Go $want or newer from https://go.dev/dl/ into /usr/local"
	fi
	have=${have#go}
	if [ "$(printf '%s\n%s\n' "$want" "${have%% *}" | sort -V | head -n 1)" != "$want" ]; then
		fail "Go $have is too old" "unpack Go $want or newer from https://go.dev/dl/ into /usr/local"
	fi
	# git refuses to look at another user's checkout, and go build then fails over its version stamp.
	if ! git rev-parse HEAD >/dev/null 2>&1; then
		export GOFLAGS="${GOFLAGS:-} -buildvcs=false"
	fi
	# Where the toolchain can, the program erases what it leaves of keys in memory.
	if GOEXPERIMENT="${GOEXPERIMENT:+$GOEXPERIMENT,}runtimesecret" go list runtime/secret >/dev/null 2>&1; then
		export GOEXPERIMENT="${GOEXPERIMENT:+$GOEXPERIMENT,}runtimesecret"
	fi
	# go keeps its cache there, and a bare container sets none.
	export HOME="${HOME:-/root}" CGO_ENABLED=1
}

# A C compiler alone does not compile: the C library's headers are a package of their own.
compiles_c() {
	command -v gcc >/dev/null && printf '#include <stdlib.h>\n' | gcc -x c -fsyntax-only - 2>/dev/null
}

# The reference implementation of PSA Crypto, which the tests compare with.
has_psa() {
	printf '#include <psa/crypto.h>\n' | gcc -x c -fsyntax-only - 2>/dev/null
}

# Debian's perl-base has the program alone.
has_perl() {
	perl -MFile::Copy -Mthreads -e 1 2>/dev/null
}

has_cryptography() {
	python3 -c 'import cryptography' 2>/dev/null
}

# OpenSSL's provider for TPMs, which uses keys that were exported.
has_tpm2_openssl() {
	local dir
	dir=$(openssl version -m 2>/dev/null | sed 's/.*"\(.*\)"/\1/') && [ -e "$dir/tpm2.so" ]
}

# A PKCS#11 module that keeps its keys in a TPM.
has_tpm2_pkcs11() {
	compgen -G '/usr/lib*/*/pkcs11/libtpm2_pkcs11.so' >/dev/null || compgen -G '/usr/lib*/pkcs11/libtpm2_pkcs11.so' >/dev/null
}

# How tpm2-pkcs11 reaches tpm2-abrmd, and how that reaches swtpm.
has_tctis() {
	local libraries
	libraries=$(/sbin/ldconfig -p 2>/dev/null) &&
		[[ $libraries == *libtss2-tcti-tabrmd.so* && $libraries == *libtss2-tcti-swtpm.so* ]]
}

# The module proxy is reached by TLS.
trusts_tls() {
	[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || [ -e /etc/ssl/cert.pem ]
}

# need COMMAND PACKAGES installs the packages unless the command (a program or a function of this file) works.
missing=() missing_packages=()
need() {
	local works=$1
	shift
	case $works in
	compiles_c | trusts_tls | has_psa | has_perl | has_cryptography | has_tpm2_openssl | has_tpm2_pkcs11 | has_tctis) "$works" && return ;;
	*) command -v "$works" >/dev/null && return ;;
	esac
	missing+=("$works")
	missing_packages+=("$@")
}

# install_packages runs in a subshell. A package that is there for its program must not start its service: tpm2-abrmd's
# would take the machine's TPM.
install_packages() {
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	apt-get update -q && apt-get install -q -y --no-install-recommends "$@"
}

install_needed() {
	if [ ${#missing[@]} = 0 ]; then
		return
	fi
	if ! command -v apt-get >/dev/null; then
		fail "missing: ${missing[*]}, and there is no apt-get here to install it with" \
			"install what Debian calls: ${missing_packages[*]}"
	fi
	echo "installing ${missing_packages[*]}"
	local log
	log=$(mktemp)
	if ! (install_packages "${missing_packages[@]}") </dev/null >"$log" 2>&1 3<&-; then
		cat "$log" >&2
		rm -f "$log"
		fail "apt-get could not install ${missing_packages[*]}" "install them by hand, then run this again"
	fi
	rm -f "$log"
}
export DEBIAN_FRONTEND=noninteractive

require_dev_fuse() {
	if [ ! -e /dev/fuse ]; then
		modprobe fuse 2>/dev/null || true
	fi
	if [ ! -e /dev/fuse ]; then
		mknod -m 666 /dev/fuse c 10 229 2>/dev/null || true
	fi
	# Opening it tells whether the kernel and the container allow it.
	if ! (exec 3<>/dev/fuse) 2>/dev/null; then
		fail "/dev/fuse is missing or cannot be opened, so nothing can be mounted" \
			"on a machine: modprobe fuse" \
			"in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN"
	fi
}
