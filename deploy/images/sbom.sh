#!/bin/sh
# What is in an image, as CycloneDX 1.6.
#
#   sbom.sh crates PACKAGE              one component a line: what a program of this workspace is built from
#   sbom.sh wheels FOLDER               the same for Python's wheels, from their metadata
#   sbom.sh finish NAME VERSION FILE    inside the image: the file of such lines and Debian's packages,
#                                       as /usr/share/sextant/sbom.cdx.json
#
# Source: https://cyclonedx.org/docs/1.6/json/ and https://github.com/package-url/purl-spec
set -eu

# name|version|licence lines on the standard input. An expression of licences may be none that SPDX
# knows, so it goes as a name.
lines() {
    awk -F '|' -v type="$1" '{
        purl = $2; gsub(/\+/, "%2B", purl); gsub(/:/, "%3A", purl)
        gsub(/["\\]/, "", $3)
        licence = $3 == "" ? "" : ",\"licenses\":[{\"license\":{\"name\":\"" $3 "\"}}]"
        printf "{\"type\":\"library\",\"name\":\"%s\",\"version\":\"%s\",\"purl\":\"pkg:%s/%s@%s\"%s}\n",
            $1, $2, type, $1, purl, licence
    }'
}

case ${1:-} in
crates)
    cargo tree --locked --offline --package "$2" --edges normal --prefix none --format '{p}|{l}' |
        sed -E 's/ \(\*\)$//; s/^([^ ]+) v([^ |]+)[^|]*\|/\1|\2|/' | sort -u | lines cargo
    ;;
wheels)
    for file in "$2"/*.dist-info/METADATA; do
        awk -F ': ' '/^$/ { exit } { gsub(/\r/, "") } $1 == "Name" { n = $2 } $1 == "Version" { v = $2 }
            $1 ~ /^License(-Expression)?$/ && l == "" { l = $2 } END { print n "|" v "|" l }' "$file"
    done | lines pypi
    ;;
finish)
    mkdir -p /usr/share/sextant
    {
        printf '{"bomFormat":"CycloneDX","specVersion":"1.6","version":1,"metadata":{"component":'
        printf '{"type":"container","name":"%s","version":"%s"}},"components":[\n' "$2" "$3"
        {
            cat "$4"
            # shellcheck disable=SC2016 # dpkg-query puts these in
            dpkg-query --show --showformat '${Package}|${Version}|\n' | lines deb/debian
        } | sed '$!s/$/,/'
        printf ']}\n'
    } >/usr/share/sextant/sbom.cdx.json
    ;;
*)
    echo "usage: $0 crates PACKAGE | wheels FOLDER | finish NAME VERSION FILE" >&2
    exit 2
    ;;
esac
