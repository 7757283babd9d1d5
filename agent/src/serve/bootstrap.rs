//! What an agent begins with, its secret, and an account: an access key, and the default VPC. What an older agent has made
//! of that is completed.

use jiff::Timestamp;
use rand::RngExt;

use crate::config::Config;
use crate::ids::{NetworkAclId, unique_id};
use crate::network::default_vpc;
use crate::network::furnishing::{acl_of, default_acl, main_route_table};
use crate::network::routes::main_table;
use crate::records::{AccessKey, Secret, Subnet, Vpc};
use crate::state::{Draft, State};
use crate::store::StoreError;

/// The account's access key, and whether it is new.
#[derive(Debug)]
pub struct Bootstrap {
    /// What requests are signed with.
    pub access_key: AccessKey,
    /// Whether this is the account's first start.
    pub is_first_start: bool,
}

/// Makes what the configured account needs, if it has none yet: all of it or nothing.
pub fn bootstrap(state: &State, config: &Config, now: Timestamp) -> Result<Bootstrap, StoreError> {
    state.change(|draft| {
        complete_older_vpcs(draft);
        if draft.get::<Secret>(Secret::THIS).is_none() {
            draft.put(Secret::random());
        }
        let oldest = draft
            .all::<AccessKey>()
            .filter(|key| key.account == config.account)
            .min_by_key(|key| (key.created, key.id.clone()));
        if let Some(key) = oldest {
            // A default VPC that is gone was deleted, and EC2 does not make it again either.
            return Ok(Bootstrap { access_key: AccessKey::clone(key), is_first_start: false });
        }
        let access_key = new_access_key(&config.account, now);
        draft.put(access_key.clone());
        if !draft.all::<Vpc>().any(|vpc| vpc.owner == config.account) {
            default_vpc::plan(config, &config.account, None).put(draft);
        }
        Ok(Bootstrap { access_key, is_first_start: true })
    })
}

/// Gives a network ACL, a route table and an internet gateway to VPCs of before there were any. Nobody can delete a main
/// route table, so that one without is such a VPC; the ACL is the one that its subnets have known since they were read.
fn complete_older_vpcs(draft: &mut Draft) {
    let older = draft.all::<Vpc>().filter(|vpc| main_table(draft, &vpc.id).is_none());
    let older: Vec<_> = older.cloned().collect();
    for vpc in older {
        let mut table = main_route_table(&vpc);
        if vpc.is_default {
            let gateway = default_vpc::way_out(&vpc, &mut table);
            draft.put(gateway);
        }
        draft.put(table);
        let known = draft.all::<Subnet>().find(|subnet| subnet.vpc == vpc.id);
        let known = known.map(|subnet| subnet.network_acl.network_acl.clone());
        if acl_of(draft, &vpc.id).is_none() {
            draft.put(default_acl(&vpc, known.unwrap_or_else(NetworkAclId::random)));
        }
    }
}

/// The digits of a secret, 40 of which are 238 bits. EC2 also has `/` and `+`, which would have to be escaped in some places.
const SECRET_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

fn new_access_key(account: &str, now: Timestamp) -> AccessKey {
    AccessKey {
        id: unique_id("AKIA", 16),
        secret: random_secret(),
        account: account.to_owned(),
        created: now,
    }
}

fn random_secret() -> String {
    let mut random = rand::rng();
    let digit = || SECRET_DIGITS.get(random.random_range(0..SECRET_DIGITS.len())).copied().map(char::from);
    std::iter::repeat_with(digit).flatten().take(40).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::network::Cidr;
    use crate::network::routes::{lookup, table_of};
    use crate::records::{
        DhcpOptions, InternetGateway, NetworkAcl, RouteTable, RouteTarget, SecurityGroup, Subnet,
    };
    use crate::store::memory::Memory;
    use crate::store::{Store, Write};

    fn counts(state: &State) -> [usize; 8] {
        let world = state.read();
        [
            world.all::<AccessKey>().count(),
            world.all::<DhcpOptions>().count(),
            world.all::<Vpc>().count(),
            world.all::<Subnet>().count(),
            world.all::<SecurityGroup>().count(),
            world.all::<InternetGateway>().count(),
            world.all::<RouteTable>().count(),
            world.all::<NetworkAcl>().count(),
        ]
    }

    #[test]
    fn an_account_is_made_once() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let config = Config::default();
        let state = State::open(Arc::clone(&store)).unwrap();
        let first = bootstrap(&state, &config, Timestamp::UNIX_EPOCH).unwrap();
        assert!(first.is_first_start);
        let secret = state.read().get::<Secret>(Secret::THIS).cloned();
        assert!(secret.is_some());
        assert_eq!(counts(&state), [1, 1, 1, 3, 1, 1, 1, 1]);

        let state = State::open(store).unwrap();
        let second = bootstrap(&state, &config, Timestamp::now()).unwrap();
        assert!(!second.is_first_start);
        assert_eq!(second.access_key, first.access_key);
        assert_eq!(state.read().get::<Secret>(Secret::THIS).cloned(), secret);
        assert_eq!(counts(&state), [1, 1, 1, 3, 1, 1, 1, 1]);

        let other = Config { account: "123456789012".into(), ..config };
        let third = bootstrap(&state, &other, Timestamp::now()).unwrap();
        assert!(third.is_first_start);
        assert_eq!(third.access_key.account, "123456789012");
        assert_eq!(counts(&state), [2, 2, 2, 6, 2, 2, 2, 2]);
    }

    #[test]
    fn a_vpc_of_an_older_agent_gets_what_it_lacks_once() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        drop(State::open(Arc::clone(&store)).unwrap());
        let vpc = r#"{"version":1,"document":{"id":"vpc-0123456789abcdef0","owner":"000000000000",
            "cidr":"172.31.0.0/16","is_default":true,"dhcp_options":"dopt-0123456789abcdef0"}}"#;
        let subnet = r#"{"version":1,"document":{"id":"subnet-0123456789abcdef1","owner":"000000000000",
            "vpc":"vpc-0123456789abcdef0","cidr":"172.31.0.0/20","availability_zone":"us-east-1a",
            "default_for_az":true,"map_public_ip_on_launch":true}}"#;
        let write = |key: &str, text: &str| Write { key: key.into(), value: Some(text.into()) };
        let older =
            [write("vpc/vpc-0123456789abcdef0", vpc), write("subnet/subnet-0123456789abcdef1", subnet)];
        store.commit(&older).unwrap();
        let mut gateways = Vec::new();
        for _ in 0..2 {
            let state = State::open(Arc::clone(&store)).unwrap();
            bootstrap(&state, &Config::default(), Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(counts(&state)[5..], [1, 1, 1]);
            let world = state.read();
            let subnet = world.all::<Subnet>().next().unwrap();
            assert!(world.get::<NetworkAcl>(&subnet.network_acl.network_acl).unwrap().is_default);
            let routes = &table_of(&world, subnet).unwrap().routes;
            assert_eq!(lookup(routes, Cidr::DEFAULT_VPC.first()).unwrap().target, RouteTarget::Local);
            let RouteTarget::InternetGateway(id) = &lookup(routes, [8, 8, 8, 8].into()).unwrap().target
            else {
                panic!("{routes:?}");
            };
            assert!(world.get::<InternetGateway>(id).unwrap().vpc.is_some());
            gateways.push(id.clone());
        }
        assert_eq!(gateways[0], gateways[1]);
    }

    #[test]
    fn an_access_key_has_the_form_of_ec2s() {
        let key = new_access_key("000000000000", Timestamp::UNIX_EPOCH);
        assert!(key.id.starts_with("AKIA") && key.id.len() == 20, "{}", key.id);
        assert!(key.id.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()));
        assert_eq!(key.secret.len(), 40);
        assert_ne!(key.secret, new_access_key("000000000000", Timestamp::UNIX_EPOCH).secret);
    }
}
