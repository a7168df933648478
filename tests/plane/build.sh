#!/usr/bin/env bash
# Builds the control plane (plane, kwok) and helm once, and prints the folder they
# are in. The folder's name is the hash of go.sum, this script and the Go version:
# only a new machine, or a changed version, pays the seven minutes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
helm_version=v4.3.1
kubernetes=v1.36.3

export GOTOOLCHAIN=local CGO_ENABLED=0
go_version=$(go env GOVERSION)
key=$(cat "$here/go.sum" "$here/main.go" "$here/build.sh" <(echo "$go_version") | sha256sum | cut -c1-16)
out="${CARGO_TARGET_DIR:-$root/target}/plane/$key"

if [ ! -x "$out/helm" ] || [ ! -x "$out/kwok" ] || [ ! -x "$out/plane" ]; then
  mkdir -p "$out.new"
  echo "plane: building the test control plane ($kubernetes, $go_version), once, about 7 minutes on 2 cores" >&2
  stamp=""
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamp="$stamp -X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=36"
    stamp="$stamp -X $package.gitTreeState=clean -X $package.gitCommit=0000000000000000000000000000000000000000"
    stamp="$stamp -X $package.buildDate=2026-08-01T00:00:00Z"
  done
  cd "$here"
  started=$SECONDS
  # A line every half minute, so that nobody takes a long link for a hang.
  (while sleep 30; do echo "plane: still building, $((SECONDS - started)) s" >&2; done) &
  ticker=$!
  trap 'kill $ticker 2>/dev/null || true' EXIT
  flags=(-mod=readonly -p 2 -trimpath -tags grpcnotrace,notest)
  go build "${flags[@]}" -ldflags "-s -w $stamp" -o "$out.new/plane" . >&2
  go build "${flags[@]}" -ldflags "-s -w $stamp" -o "$out.new/kwok" sigs.k8s.io/kwok/cmd/kwok >&2
  echo "plane: building helm $helm_version" >&2
  (cd / && GOBIN="$out.new" go install -p 2 -trimpath -ldflags "-s -w" "helm.sh/helm/v4/cmd/helm@$helm_version") >&2
  rm -rf "$out"
  mv "$out.new" "$out"
  echo "plane: built in $((SECONDS - started)) s" >&2
fi
echo "$out"
