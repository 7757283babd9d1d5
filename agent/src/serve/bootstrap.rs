//! What an account begins with: an access key, and the default VPC.

use jiff::Timestamp;
use rand::RngExt;

use crate::config::Config;
use crate::network::default_vpc;
use crate::records::{AccessKey, Vpc};
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
            put_default_vpc(draft, config);
        }
        Ok(Bootstrap { access_key, is_first_start: true })
    })
}

fn put_default_vpc(draft: &mut Draft, config: &Config) {
    let default_vpc::DefaultVpc { vpc, dhcp_options, subnets, security_group } = default_vpc::plan(config);
    draft.put(dhcp_options);
    draft.put(vpc);
    for subnet in subnets {
        draft.put(subnet);
    }
    draft.put(security_group);
}

/// The digits of an access key's id are those of base 32.
const ID_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Those of a secret, 40 of which are 238 bits. EC2 also has `/` and `+`, which would have to be escaped in some places.
const SECRET_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

fn new_access_key(account: &str, now: Timestamp) -> AccessKey {
    AccessKey {
        id: format!("AKIA{}", random_text(ID_DIGITS, 16)),
        secret: random_text(SECRET_DIGITS, 40),
        account: account.to_owned(),
        created: now,
    }
}

fn random_text(digits: &[u8], length: usize) -> String {
    let mut random = rand::rng();
    let digit = || digits.get(random.random_range(0..digits.len())).copied().map(char::from);
    std::iter::repeat_with(digit).flatten().take(length).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::records::{DhcpOptions, SecurityGroup, Subnet};
    use crate::store::Store;
    use crate::store::memory::Memory;

    fn counts(state: &State) -> [usize; 5] {
        let world = state.read();
        [
            world.all::<AccessKey>().count(),
            world.all::<DhcpOptions>().count(),
            world.all::<Vpc>().count(),
            world.all::<Subnet>().count(),
            world.all::<SecurityGroup>().count(),
        ]
    }

    #[test]
    fn an_account_is_made_once() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let config = Config::default();
        let state = State::open(Arc::clone(&store)).unwrap();
        let first = bootstrap(&state, &config, Timestamp::UNIX_EPOCH).unwrap();
        assert!(first.is_first_start);
        assert_eq!(counts(&state), [1, 1, 1, 3, 1]);

        let state = State::open(store).unwrap();
        let second = bootstrap(&state, &config, Timestamp::now()).unwrap();
        assert!(!second.is_first_start);
        assert_eq!(second.access_key, first.access_key);
        assert_eq!(counts(&state), [1, 1, 1, 3, 1]);

        let other = Config { account: "123456789012".into(), ..config };
        let third = bootstrap(&state, &other, Timestamp::now()).unwrap();
        assert!(third.is_first_start);
        assert_eq!(third.access_key.account, "123456789012");
        assert_eq!(counts(&state), [2, 2, 2, 6, 2]);
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
