use super::check_name;

#[test]
fn names_are_as_ec2_allows_them() {
    for name in ["abc", "debian-12 (bookworm) [2026/11] a.b'c@d_e"] {
        assert!(check_name(name).is_ok(), "{name}");
    }
    let long = "x".repeat(129);
    for name in ["ab", "a:b:c", "naïve", &long] {
        assert_eq!(check_name(name).unwrap_err().code, "InvalidAMIName.Malformed", "{name}");
    }
    assert_eq!(check_name("").unwrap_err().code, "MissingParameter");
}
