//! `MaxResults` and `NextToken`: long answers in pages.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::query::ApiError;

/// Cuts a page out of `items`, which are in the order of their keys, and makes the token for the next one. The token
/// holds the last key, so that items that come and go meanwhile disturb nothing. EC2 allows `MaxResults` from
/// `smallest` (mostly 5) to 1000.
pub fn page<T>(
    mut items: Vec<T>,
    key: impl Fn(&T) -> &str,
    max_results: Option<i64>,
    next_token: Option<&str>,
    smallest: i64,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    if let Some(token) = next_token {
        let bad =
            || ApiError::new("InvalidNextToken", "The token is not one that this service has returned.");
        let last = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
        let last = String::from_utf8(last).map_err(|_| bad())?;
        items.retain(|item| key(item) > last.as_str());
    }
    let Some(max_results) = max_results else { return Ok((items, None)) };
    if !(smallest..=1000).contains(&max_results) {
        let reason = format!("Expecting a value between {smallest} and 1000.");
        return Err(ApiError::invalid(max_results, "maxResults", reason));
    }
    let limit = usize::try_from(max_results).unwrap_or(1000);
    let more = items.len() > limit;
    items.truncate(limit);
    let token = items.last().filter(|_| more).map(|item| URL_SAFE_NO_PAD.encode(key(item)));
    Ok((items, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other() {
        let all: Vec<String> = (0..23).map(|number| format!("i-{number:02}")).collect();
        let mut token = None;
        let mut seen = Vec::new();
        let mut sizes = Vec::new();
        loop {
            let (items, next) = page(all.clone(), |item| item, Some(10), token.as_deref(), 5).unwrap();
            sizes.push(items.len());
            seen.extend(items);
            token = next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!((seen, sizes), (all.clone(), vec![10, 10, 3]));
        let code = |max, token: Option<&str>| page(all.clone(), |item| item, max, token, 5).unwrap_err().code;
        assert_eq!(code(Some(4), None), "InvalidParameterValue");
        assert_eq!(code(Some(1001), None), "InvalidParameterValue");
        assert_eq!(code(Some(-1), None), "InvalidParameterValue");
        assert_eq!(code(Some(5), Some("?")), "InvalidNextToken");
    }
}
