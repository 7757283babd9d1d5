//! Temporary credentials: an access key and a token that say which instance has which role, until when.
//!
//! Nothing of them is kept. The token is those claims with a code that only the agent can make, and the access key's
//! two halves are derived from the claims, so that credentials are good after a restart of the agent, and the same
//! question gets the same answer. As in EC2 they are good for six hours, and there are new ones long before the end: an
//! instance's change every five hours, counted from when it got its instance profile.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use subtle::ConstantTimeEq;

use crate::ids::{BASE_32, InstanceId};
use crate::query::sigv4::Unfit;
use crate::records::Secret;
use crate::records::secret::hmac;

/// How long credentials are good for.
const LIFETIME: SignedDuration = SignedDuration::from_hours(6);

/// How long the same ones are handed out. Whoever gets them at the end of it can use them for an hour.
const PERIOD: SignedDuration = SignedDuration::from_hours(5);

/// The length of a token's code, in bytes.
const CODE: usize = 32;

/// What credentials are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Who they were made for.
    pub instance: InstanceId,
    /// The id of the role that they give.
    pub role: String,
    /// When they were made.
    pub issued: Timestamp,
    /// When they end.
    pub expires: Timestamp,
}

/// Credentials as they are handed out.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `ASIA…`.
    pub access_key_id: String,
    /// What goes with it.
    pub secret_access_key: String,
    /// What has to be sent with each request.
    pub token: String,
}

impl Claims {
    /// What an instance, that has its profile `since` then, is given now.
    pub fn current(instance: &InstanceId, role: &str, since: Timestamp, now: Timestamp) -> Self {
        let since = whole_seconds(since);
        // A clock that was set back is no reason to give nothing.
        let elapsed = now.as_second().saturating_sub(since.as_second()).max(0);
        let begun = elapsed - elapsed % PERIOD.as_secs();
        let later = |by: SignedDuration| since.checked_add(by).unwrap_or(Timestamp::MAX);
        let begun = SignedDuration::from_secs(begun);
        Self {
            instance: instance.clone(),
            role: role.to_owned(),
            issued: later(begun),
            expires: later(begun.saturating_add(LIFETIME)),
        }
    }

    /// The credentials for these claims.
    pub fn sign(&self, secret: &Secret) -> Credentials {
        let text = self.text();
        let code = hmac(&secret.derive("session token"), text.as_bytes());
        Credentials {
            access_key_id: self.access_key(secret),
            secret_access_key: self.secret_key(secret),
            token: STANDARD.encode([text.as_bytes(), &code].concat()),
        }
    }

    /// The claims that a token makes for an access key, if the agent has made them and they have not ended.
    pub fn verify(secret: &Secret, access_key: &str, token: &str, now: Timestamp) -> Result<Self, Unfit> {
        let bytes = STANDARD.decode(token).map_err(|_| Unfit::Unknown)?;
        let (text, code) =
            bytes.len().checked_sub(CODE).and_then(|at| bytes.split_at_checked(at)).ok_or(Unfit::Unknown)?;
        let expected = hmac(&secret.derive("session token"), text);
        if !bool::from(expected.ct_eq(code)) {
            return Err(Unfit::Unknown);
        }
        let claims = str::from_utf8(text).ok().and_then(Self::read).ok_or(Unfit::Unknown)?;
        if claims.access_key(secret) != access_key {
            return Err(Unfit::Unknown);
        }
        if now >= claims.expires { Err(Unfit::Expired) } else { Ok(claims) }
    }

    /// The public half of the access key.
    fn access_key(&self, secret: &Secret) -> String {
        let code = hmac(&secret.derive("session access key"), self.text().as_bytes());
        let digits = code.iter().take(16).filter_map(|byte| BASE_32.get(usize::from(byte % 32)));
        "ASIA".chars().chain(digits.copied().map(char::from)).collect()
    }

    /// The secret half of the access key.
    pub fn secret_key(&self, secret: &Secret) -> String {
        let code = hmac(&secret.derive("session secret key"), self.text().as_bytes());
        // 30 bytes are 40 digits.
        STANDARD.encode(code.get(..30).unwrap_or_default())
    }

    fn text(&self) -> String {
        let Self { instance, role, issued, expires } = self;
        format!("{instance} {role} {} {}", issued.as_second(), expires.as_second())
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let instance = parts.next()?.parse().ok()?;
        let role = parts.next()?.to_owned();
        let mut time = || Timestamp::from_second(parts.next()?.parse().ok()?).ok();
        Some(Self { instance, role, issued: time()?, expires: time()? })
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROLE: &str = "AROAAAAAAAAAAAAAAAAAA";

    fn secret() -> Secret {
        Secret { name: Secret::THIS.into(), secret: [7; 32] }
    }

    fn since() -> Timestamp {
        "2026-11-28T10:00:00.25Z".parse().unwrap()
    }

    fn minutes(count: i64) -> Timestamp {
        whole_seconds(since()) + SignedDuration::from_mins(count)
    }

    fn at(now: Timestamp) -> Claims {
        Claims::current(&"i-0123456789abcdef0".parse().unwrap(), ROLE, since(), now)
    }

    #[test]
    fn credentials_have_the_form_of_awss() {
        let made = at(minutes(0)).sign(&secret());
        assert!(made.access_key_id.starts_with("ASIA"));
        let is_base_32 = |digit: u8| digit.is_ascii_uppercase() || (b'2'..=b'7').contains(&digit);
        assert!(made.access_key_id.len() == 20 && made.access_key_id.bytes().all(is_base_32));
        assert_eq!(made.secret_access_key.len(), 40);
        // A header's value, and all on one line.
        assert!(made.token.bytes().all(|byte| byte.is_ascii_graphic()));
    }

    #[test]
    fn they_change_an_hour_before_their_end() {
        for (now, issued) in [
            (minutes(0), 0),
            (minutes(-60), 0),
            (minutes(299), 0),
            (minutes(300) - SignedDuration::from_secs(1), 0),
            (minutes(300), 300),
            (minutes(599), 300),
            (minutes(600), 600),
            (minutes(300 * 1000), 300 * 1000),
        ] {
            let claims = at(now);
            assert_eq!((claims.issued, claims.expires), (minutes(issued), minutes(issued + 360)), "{now}");
        }
        assert_eq!(at(minutes(10)).sign(&secret()).token, at(minutes(290)).sign(&secret()).token);
        assert_ne!(at(minutes(10)).sign(&secret()).token, at(minutes(310)).sign(&secret()).token);
        assert_eq!(at(Timestamp::MAX).expires, Timestamp::MAX);
    }

    #[test]
    fn they_are_known_again_until_their_end() {
        let claims = at(minutes(0));
        let made = claims.sign(&secret());
        let known = |now| Claims::verify(&secret(), &made.access_key_id, &made.token, now);
        assert_eq!(known(minutes(0)), Ok(claims.clone()));
        assert_eq!(known(minutes(360) - SignedDuration::from_secs(1)), Ok(claims.clone()));
        assert_eq!(known(minutes(360)), Err(Unfit::Expired));
        assert_eq!(claims.secret_key(&secret()), made.secret_access_key);
        let other = Secret { name: Secret::THIS.into(), secret: [8; 32] };
        for (secret, key, token) in [
            (&other, made.access_key_id.as_str(), made.token.as_str()),
            (&secret(), "ASIAAAAAAAAAAAAAAAAA", &made.token),
            (&secret(), "", &made.token),
            (&secret(), &made.access_key_id, ""),
            (&secret(), &made.access_key_id, "AAAA"),
            (&secret(), &made.access_key_id, "?"),
            (&secret(), &made.access_key_id, &at(minutes(310)).sign(&secret()).token),
        ] {
            assert_eq!(Claims::verify(secret, key, token, minutes(0)), Err(Unfit::Unknown), "{token}");
        }
    }

    proptest! {
        #[test]
        fn no_change_to_a_token_goes_unseen(at_byte in any::<prop::sample::Index>(), bit in 0u8..8) {
            let made = at(minutes(0)).sign(&secret());
            let mut bytes = STANDARD.decode(&made.token).unwrap();
            *at_byte.get_mut(&mut bytes) ^= 1u8 << bit;
            let token = STANDARD.encode(bytes);
            let known = Claims::verify(&secret(), &made.access_key_id, &token, minutes(0));
            prop_assert_eq!(known, Err(Unfit::Unknown));
        }

        #[test]
        fn whoever_asks_can_use_what_it_gets_for_an_hour(after in 0i64..1_000_000_000) {
            let now = whole_seconds(since()) + SignedDuration::from_secs(after);
            let claims = at(now);
            prop_assert!(claims.issued <= now);
            prop_assert!(claims.expires.duration_since(now) > SignedDuration::from_mins(59));
            prop_assert_eq!(claims.expires.duration_since(claims.issued), LIFETIME);
        }

        #[test]
        fn different_claims_have_nothing_in_common(number in 0u8..=255, role in "AROA[A-Z2-7]{17}") {
            let (one, claims) = (at(minutes(0)), at(minutes(0)));
            let instance = format!("i-{number:017x}").parse().unwrap();
            let other = Claims { instance, role, ..claims };
            let (one, other) = (one.sign(&secret()), other.sign(&secret()));
            prop_assert_ne!(&one.access_key_id, &other.access_key_id);
            prop_assert_ne!(&one.secret_access_key, &other.secret_access_key);
            let mixed = Claims::verify(&secret(), &one.access_key_id, &other.token, minutes(0));
            prop_assert_eq!(mixed, Err(Unfit::Unknown));
        }

        #[test]
        fn no_token_makes_it_panic(token in "[A-Za-z0-9+/=]{0,120}", key in ".{0,24}") {
            prop_assert!(Claims::verify(&secret(), &key, &token, minutes(0)).is_err());
        }
    }
}
