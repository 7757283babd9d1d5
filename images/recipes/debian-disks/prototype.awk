# Turns a list of files, each directory's before what is next to it, into a prototype for mkfs.xfs. The fields are depth,
# type, mode, owner, group, name, target, path. Names with a space have no place in a prototype.
function mode(type, octal) {
    octal = sprintf("%04d", octal)
    special = substr(octal, 1, 1)
    # There is no letter for the sticky bit. What makes temporary directories at boot sets it.
    return type (special >= 4 ? "u" : "-") (special % 4 >= 2 ? "g" : "-") substr(octal, 2)
}
BEGIN {
    print "/dev/null\n0 0"
}
$8 ~ / / {
    print "there is a space in " $8 >"/dev/stderr"
    exit 1
}
{
    for (; depth > $1; depth--) print "$"
}
$2 == "d" {
    print ($1 ? $6 : ""), mode("d", $3), $4, $5
    depth++
}
$2 == "f" {
    print $6, mode("-", $3), $4, $5, $8
}
$2 == "l" {
    print $6, mode("l", 777), $4, $5, $7
}
END {
    for (; depth > 0; depth--) print "$"
}
