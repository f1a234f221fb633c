#!/bin/sh
# From bare Debian 12 with Rust to ready. Installs what is missing and nothing else; asks nothing; may run any number of times.
#
#   scripts/setup.sh build    what compiling needs
#   scripts/setup.sh test     and what the end-to-end tests drive: containerd, a registry, namespaces, tools for images
#   scripts/setup.sh demo     the same without the tools
#   scripts/setup.sh lint     and cargo-deny
set -eu

say() { echo "setup: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

build="gcc libc6-dev make ca-certificates"
lab="containerd runc stargz-snapshotter docker-registry debootstrap iproute2 util-linux"
case "${1:-}" in
build | lint) packages="$build" ;;
test) packages="$build $lab skopeo umoci erofs-utils" ;;
demo) packages="$build $lab" ;;
*) fail "usage: scripts/setup.sh build|test|demo|lint" ;;
esac

# One look at dpkg's database: a second run costs milliseconds.
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null) || fail "this is not Debian: install by hand: $packages"
missing=
for package in $packages; do
    echo "$installed" | grep -qx "installed $package" || missing="$missing $package"
done

if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || fail "run as root, or: apt-get install --no-install-recommends$missing"
    say "installing$missing"
    log=$(mktemp)
    # The lab starts its own containerd and registry: none is to start because its package was installed. Where somebody
    # has a policy already, it stays.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy" "$log"' EXIT
    else
        trap 'rm -f "$log"' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of words
    {
        apt-get -q update &&
            apt-get -q -o Dpkg::Options::=--force-confold install --no-install-recommends -y $missing
    } >"$log" 2>&1 </dev/null || {
        tail -n 20 "$log" >&2
        fail "apt-get could not install$missing"
    }
fi

command -v cargo >/dev/null || fail "no cargo: install Rust with rustup"

if [ "$1" = lint ] && ! cargo deny --version >/dev/null 2>&1; then
    say "installing cargo-deny (a few minutes, once)"
    cargo install --locked --quiet cargo-deny
fi
