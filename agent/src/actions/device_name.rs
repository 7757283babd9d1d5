//! The names that requests give to volumes. The guest chooses its own.

/// Whether EC2 takes a device's name: `sd` and a letter, with a number from 1 to 15 or without, or `xvd` and one or two
/// letters; behind `/dev/` or alone.
pub fn is_device_name(name: &str) -> bool {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    if let Some(letters) = name.strip_prefix("xvd") {
        return matches!(letters.len(), 1 | 2) && letters.bytes().all(|byte| byte.is_ascii_lowercase());
    }
    let Some(rest) = name.strip_prefix("sd") else { return false };
    let Some(number) = rest.strip_prefix(|letter: char| letter.is_ascii_lowercase()) else { return false };
    number.is_empty()
        || !number.starts_with('0')
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && number.parse().is_ok_and(|number: u8| number <= 15)
}

/// Whether it is the name of an instance store volume, as it stands: `ephemeral0` to `ephemeral23`.
pub fn is_ephemeral(name: &str) -> bool {
    let number = name.strip_prefix("ephemeral").and_then(|number| number.parse::<u8>().ok());
    number.is_some_and(|number| number < 24 && name == format!("ephemeral{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_those_of_ec2() {
        for name in [
            "/dev/sdf",
            "/dev/sdp",
            "/dev/sda1",
            "/dev/sdb15",
            "sdh",
            "sda1",
            "/dev/xvda",
            "/dev/xvdf",
            "/dev/xvdba",
            "xvdh",
        ] {
            assert!(is_device_name(name), "{name}");
        }
        for name in [
            "",
            "/dev/",
            "/dev/sd",
            "/dev/sdF",
            "/dev/sdaa",
            "/dev/sdf0",
            "/dev/sdf01",
            "/dev/sdf16",
            "/dev/sdf+1",
            "/dev/sdf x",
            "sdf/..",
            "/dev//dev/sdf",
            "/dev/xvd",
            "/dev/xvdabc",
            "/dev/xvdf1",
            "/dev/vda",
            "/dev/hda",
        ] {
            assert!(!is_device_name(name), "{name}");
        }
    }

    #[test]
    fn instance_store_volumes_have_numbers() {
        assert!(["ephemeral0", "ephemeral9", "ephemeral23"].iter().all(|name| is_ephemeral(name)));
        for name in
            ["", "ephemeral", "ephemeral24", "ephemeral+1", "ephemeral01", "ephemeral256", "Ephemeral0"]
        {
            assert!(!is_ephemeral(name), "{name}");
        }
    }
}
