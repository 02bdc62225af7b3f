#!/bin/sh -eu
# The keys of one stage: setup.sh STAGE, with P the provider's directory, MAKER their owner, USER the opener. $CA has a
# certification authority's key.
stage=$1
as() { uid=$1 && shift && setpriv --reuid="$uid" --regid="$uid" --clear-groups "$@"; }
cd "$P/keys" || exit
# shellcheck disable=SC2016 # the inner shell expands
as "$MAKER" sh -euc '
	umask 022
	for name in k a text imported generated stored; do mkdir $name-$1; done
	cat >k-$1/generate <<-END
		template = "ecdsa-p256-sha256"
		usage = "PSA_KEY_USAGE_SIGN_MESSAGE | PSA_KEY_USAGE_SIGN_HASH | PSA_KEY_USAGE_VERIFY_MESSAGE | PSA_KEY_USAGE_EXPORT | PSA_KEY_USAGE_COPY"
	END
	echo aes-256-gcm >a-$1/generate
	echo "template = \"aes-128-gcm\"" >stored-$1/attributes
' - "$stage"
# shellcheck disable=SC2016 # the inner shell expands
as "$USER" sh -euc '
	umask 022
	mkdir copy-$1 agree-$1
	echo ecdh-p256 >agree-$1/generate
' - "$stage"
openssl x509 -new -force_pubkey "k-$stage/public.pem" -subj /CN=gate -key "$CA" -out "$WORK/chain-$stage.pem" 2>/dev/null
chmod 644 "$WORK/chain-$stage.pem"
