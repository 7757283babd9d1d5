//! Session tokens (IMDSv2).
//!
//! A token says until when it is good, and is authenticated with a key that only the agent has, together with the id of
//! the instance that it was given to. So nothing is kept of any: they cost no memory however many are asked for, no other
//! instance can use one, and they outlive the agent.
//!
//! | bytes | |
//! | --- | --- |
//! | 1 | the version of this form, [`VERSION`] |
//! | 5 | until when it is good, in seconds since 1970, big-endian |
//! | 8 | random |
//! | 28 | the first bytes of an HMAC-SHA256 of the instance's id and of what is before |
//!
//! Written in base64, that is 56 characters, as EC2's are.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use subtle::ConstantTimeEq;

use crate::ids::InstanceId;
use crate::records::Secret;
use crate::records::secret::hmac;

const VERSION: u8 = 1;

/// How much of a token is authenticated, and how long all of it is, in bytes.
const CLAIM: usize = 14;
const WHOLE: usize = 42;

/// The longest that a token is good for, in seconds: six hours.
pub const LONGEST: u32 = 21_600;

/// Makes and recognises tokens.
pub struct Tokens {
    key: [u8; 32],
}

impl Tokens {
    /// With a key of this secret.
    pub fn new(secret: &Secret) -> Self {
        Self { key: secret.derive("metadata-token") }
    }

    /// A token for an instance, good for `ttl` seconds.
    pub fn issue(&self, instance: &InstanceId, ttl: u32, now: Timestamp) -> String {
        let expires = now.as_second().saturating_add(ttl.into()).clamp(0, (1 << 40) - 1);
        let mut token = Vec::with_capacity(WHOLE);
        token.push(VERSION);
        token.extend_from_slice(expires.to_be_bytes().last_chunk::<5>().unwrap_or(&[0; 5]));
        token.extend_from_slice(&rand::random::<[u8; 8]>());
        let mac = self.mac(instance, &token);
        token.extend(mac.iter().take(WHOLE - CLAIM));
        STANDARD.encode(token)
    }

    /// How many seconds a token is still good for. None is one that was never good for this instance, or is not any more.
    pub fn verify(&self, instance: &InstanceId, token: &[u8], now: Timestamp) -> Option<u32> {
        let mut bytes = [0; WHOLE];
        // Before anything is decoded, so that a long one costs nothing.
        if token.len() != WHOLE / 3 * 4 || STANDARD.decode_slice(token, &mut bytes) != Ok(WHOLE) {
            return None;
        }
        let (claim, found) = bytes.split_at(CLAIM);
        let expected = self.mac(instance, claim);
        if !bool::from(expected.iter().as_slice().get(..WHOLE - CLAIM)?.ct_eq(found)) {
            return None;
        }
        let [VERSION, expires @ ..] = claim.first_chunk::<6>()? else { return None };
        let expires = expires.iter().fold(0_i64, |number, byte| number << 8 | i64::from(*byte));
        u32::try_from(expires.saturating_sub(now.as_second())).ok().filter(|left| *left > 0)
    }

    fn mac(&self, instance: &InstanceId, claim: &[u8]) -> [u8; 32] {
        // Ids have one length, so that none can be another's beginning.
        let mut message = Vec::with_capacity(64);
        message.extend_from_slice(claim);
        message.extend_from_slice(instance.as_str().as_bytes());
        hmac(&self.key, &message)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn tokens() -> Tokens {
        Tokens::new(&Secret { name: Secret::THIS.into(), secret: [9; 32] })
    }

    fn now() -> Timestamp {
        "2026-11-29T10:00:00Z".parse().unwrap()
    }

    fn after(seconds: i64) -> Timestamp {
        now() + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn a_token_is_good_for_its_instance_until_it_expires() {
        let (own, other) = (InstanceId::random(), InstanceId::random());
        let token = tokens().issue(&own, 60, now());
        assert_eq!(token.len(), 56);
        let left = |instance, seconds| tokens().verify(instance, token.as_bytes(), after(seconds));
        assert_eq!(left(&own, 0), Some(60));
        assert_eq!(left(&own, 59), Some(1));
        assert_eq!(left(&own, 60), None);
        assert_eq!(left(&own, 100_000), None);
        assert_eq!(left(&other, 0), None);
        let stranger = Tokens::new(&Secret::random());
        assert_eq!(stranger.verify(&own, token.as_bytes(), now()), None);
        assert_ne!(token, tokens().issue(&own, 60, now()), "no two are the same");
    }

    #[test]
    fn what_is_no_token_is_none() {
        let own = InstanceId::random();
        let token = tokens().issue(&own, LONGEST, now());
        let lines: [&[u8]; 6] = [
            b"",
            b"x",
            token.get(..55).unwrap().as_bytes(),
            &[token.as_bytes(), b"="].concat(),
            &[b'!'; 56],
            &[b'A'; 100_000],
        ];
        for wrong in lines {
            assert_eq!(tokens().verify(&own, wrong, now()), None);
        }
    }

    proptest! {
        #[test]
        fn no_change_of_a_token_is_good(at in 0_usize..WHOLE, change in 1_u8..) {
            let own = InstanceId::random();
            let mut bytes = STANDARD.decode(tokens().issue(&own, 60, now())).unwrap();
            bytes[at] ^= change;
            prop_assert_eq!(tokens().verify(&own, STANDARD.encode(bytes).as_bytes(), now()), None);
        }

        #[test]
        fn nothing_that_is_sent_as_a_token_is_a_problem(token in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(tokens().verify(&InstanceId::random(), &token, now()), None);
        }
    }
}
