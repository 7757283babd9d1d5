//! Rate limits: token buckets for bytes and for operations.
//!
//! A bucket fills with time up to its burst. Whoever finds a token in it may go ahead and takes what it needs, even
//! if that is more than there is: the debt is what the next one waits for. So a request larger than the burst is
//! slow, but never stuck, and the rate is kept in the long run.
//!
//! [`TokenBucket`] and [`Limiter`] are pure: the time is an argument. [`RateLimiter`] is what a device's queues
//! share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use innkeeper_protocol::{Limit, Limits};

const NANOSECONDS: u128 = 1_000_000_000;

/// Why there are no such limits.
#[derive(Debug, thiserror::Error)]
#[error("a limit and its burst are 1 or more")]
pub struct InvalidLimit;

/// A token bucket. Full at first.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    per_second: u64,
    burst: u64,
    /// In units of 10^-9 of a token, so that nothing is lost in between; negative when in debt.
    level: i128,
    updated: Instant,
}

impl TokenBucket {
    /// A bucket for `limit`, that is full at `now`.
    pub fn new(limit: Limit, now: Instant) -> Result<Self, InvalidLimit> {
        const DEFAULT_BURSTS_PER_SECOND: u64 = 10;
        let burst = limit.burst.unwrap_or_else(|| limit.per_second.div_ceil(DEFAULT_BURSTS_PER_SECOND));
        if limit.per_second == 0 || burst == 0 {
            return Err(InvalidLimit);
        }
        let level = i128::from(burst) * NANOSECONDS as i128;
        Ok(Self { per_second: limit.per_second, burst, level, updated: now })
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_nanos();
        self.updated = self.updated.max(now);
        let added = elapsed.saturating_mul(u128::from(self.per_second));
        let full = i128::from(self.burst) * NANOSECONDS as i128;
        self.level = self.level.saturating_add(i128::try_from(added).unwrap_or(i128::MAX)).min(full);
    }

    /// How long to wait at `now` before anything may be taken; none if it need not wait.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        let missing = (NANOSECONDS as i128).saturating_sub(self.level);
        if missing <= 0 {
            return None;
        }
        let nanoseconds = missing.unsigned_abs().div_ceil(u128::from(self.per_second));
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    /// Takes `count` tokens, whether they are there or not.
    pub fn take(&mut self, count: u64) {
        let taken = i128::from(count) * NANOSECONDS as i128;
        self.level = self.level.saturating_sub(taken);
    }
}

/// Buckets for bytes and operations, as far as there are limits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limiter {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

impl Limiter {
    /// Full buckets for `limits`.
    pub fn new(limits: Limits, now: Instant) -> Result<Self, InvalidLimit> {
        let bucket = |limit: Option<Limit>| limit.map(|limit| TokenBucket::new(limit, now)).transpose();
        Ok(Self { bytes: bucket(limits.bytes)?, operations: bucket(limits.operations)? })
    }

    fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }

    /// How long to wait at `now` before the next operation; none if it need not wait.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let buckets = [&mut self.bytes, &mut self.operations];
        buckets.into_iter().flatten().filter_map(|bucket| bucket.wait(now)).max()
    }

    /// Takes one operation of `bytes` bytes.
    pub fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }
}

/// A limiter that threads share, and that can be changed while it is used. Where there is no limit, it costs next to
/// nothing.
#[derive(Debug, Default)]
pub struct RateLimiter {
    limiter: Mutex<Limiter>,
    is_limited: AtomicBool,
}

impl RateLimiter {
    /// A limiter with full buckets.
    pub fn new(limits: Limits) -> Result<Self, InvalidLimit> {
        let limiter = Self::default();
        limiter.set(limits)?;
        Ok(limiter)
    }

    /// Replaces the limits. Who waits for the old ones should be woken.
    pub fn set(&self, limits: Limits) -> Result<(), InvalidLimit> {
        let limiter = Limiter::new(limits, Instant::now())?;
        let mut current = self.lock();
        *current = limiter;
        self.is_limited.store(!limiter.is_unlimited(), Ordering::Relaxed);
        Ok(())
    }

    /// When the next operation may begin; none for now.
    pub fn wait(&self) -> Option<Instant> {
        if !self.is_limited.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        // Who sets a limit of a token in a century has to change it anyway.
        const LONGEST: Duration = Duration::from_secs(3600);
        self.lock().wait(now).map(|wait| now + wait.min(LONGEST))
    }

    /// Accounts for one operation of `bytes` bytes.
    pub fn take(&self, bytes: u64) {
        if self.is_limited.load(Ordering::Relaxed) {
            self.lock().take(bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(per_second: u64, burst: u64) -> Limit {
        Limit { per_second, burst: Some(burst) }
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(limit(10, 5), start).unwrap();
        for _ in 0..5 {
            assert_eq!(bucket.wait(start), None);
            bucket.take(1);
        }
        let wait = bucket.wait(start).unwrap();
        assert!(wait <= Duration::from_millis(101), "{wait:?}");
        assert_eq!(bucket.wait(start + wait), None);
        // A pause fills it to the burst, and no further.
        let later = start + Duration::from_secs(100);
        assert_eq!(bucket.wait(later), None);
        bucket.take(6);
        assert!(bucket.wait(later).is_some());
    }

    #[test]
    fn a_request_larger_than_the_burst_goes_through_and_is_paid_for() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(limit(100, 10), start).unwrap();
        bucket.take(1010);
        let wait = bucket.wait(start).unwrap();
        assert!((wait.as_secs_f64() - 10.0).abs() < 0.01, "{wait:?}");
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        let now = Instant::now();
        assert!(TokenBucket::new(limit(0, 1), now).is_err());
        assert!(TokenBucket::new(limit(1, 0), now).is_err());
        assert!(TokenBucket::new(Limit { per_second: 1, burst: None }, now).is_ok());
        let limiter = RateLimiter::default();
        assert!(limiter.set(Limits { bytes: Some(limit(0, 1)), operations: None }).is_err());
        assert_eq!(limiter.wait(), None);
    }

    #[test]
    fn the_stricter_limit_decides() {
        let now = Instant::now();
        let limits = Limits { bytes: Some(limit(1000, 1000)), operations: Some(limit(1, 1)) };
        let mut limiter = Limiter::new(limits, now).unwrap();
        assert_eq!(limiter.wait(now), None);
        limiter.take(10);
        assert!(limiter.wait(now).unwrap() > Duration::from_millis(900));
    }

    proptest! {
        /// Whatever is asked for, however often and late: no more than rate and burst allow, but for one debt.
        #[test]
        fn the_rate_is_kept(
            per_second in 1u64..1_000_000,
            burst in 1u64..1_000_000,
            steps in prop::collection::vec((0u64..10_000, 0u64..1_000_000_000), 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(limit(per_second, burst), start).unwrap();
            let (mut now, mut taken, mut last) = (start, 0u128, 0u128);
            for (count, pause) in steps {
                now += Duration::from_nanos(pause);
                if let Some(wait) = bucket.wait(now) {
                    now += wait;
                    prop_assert_eq!(bucket.wait(now), None, "the wait was too short");
                }
                bucket.take(count);
                taken += u128::from(count);
                last = u128::from(count);
            }
            let allowed = u128::from(burst) + now.duration_since(start).as_nanos() * u128::from(per_second) / NANOSECONDS;
            prop_assert!(taken <= allowed + last + 1, "{} of {}", taken, allowed);
        }

        #[test]
        fn no_number_is_too_large(per_second in 1u64.., burst in 1u64.., count: u64, pause in 0u64..u64::MAX / 4) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(limit(per_second, burst), start).unwrap();
            bucket.take(count);
            bucket.take(count);
            bucket.wait(start + Duration::from_nanos(pause));
        }
    }
}
