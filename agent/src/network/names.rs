//! The names that addresses have, as EC2 makes them. The oldest region's are shorter.

use std::net::Ipv4Addr;

const OLDEST_REGION: &str = "us-east-1";

/// What the names of private addresses end with.
pub fn domain_name(region: &str) -> String {
    match region {
        OLDEST_REGION => "ec2.internal".to_owned(),
        other => format!("{other}.compute.internal"),
    }
}

/// The name that a private address has inside of the VPC.
pub fn private_dns_name(address: Ipv4Addr, region: &str) -> String {
    format!("ip-{}.{}", dashed(address), domain_name(region))
}

/// The name that a public address has, where the VPC wants it to have one.
pub fn public_dns_name(address: Ipv4Addr, region: &str) -> String {
    let place = match region {
        OLDEST_REGION => "compute-1".to_owned(),
        other => format!("{other}.compute"),
    };
    format!("ec2-{}.{place}.amazonaws.com", dashed(address))
}

fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_address_and_the_region() {
        let (private, public) = (Ipv4Addr::new(172, 31, 0, 4), Ipv4Addr::new(198, 19, 0, 5));
        for (region, inside, outside) in [
            ("us-east-1", "ip-172-31-0-4.ec2.internal", "ec2-198-19-0-5.compute-1.amazonaws.com"),
            (
                "eu-west-3",
                "ip-172-31-0-4.eu-west-3.compute.internal",
                "ec2-198-19-0-5.eu-west-3.compute.amazonaws.com",
            ),
        ] {
            assert_eq!(private_dns_name(private, region), inside);
            assert_eq!(public_dns_name(public, region), outside);
        }
    }
}
