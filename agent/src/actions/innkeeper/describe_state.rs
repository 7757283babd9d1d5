//! InnkeeperDescribeState: what `innkeeper debug state` shows, while the daemon runs.

use serde::{Deserialize, Serialize};

use crate::query::{Action, ApiError, Context};
use crate::state::Document;

/// The documents that the agent keeps, without secrets.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeState {
    /// Only a kind, such as `instance`, or a single document, such as `instance/i-0123456789abcdef0`.
    key: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    document_set: Vec<Item>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    key: String,
    version: u32,
    /// JSON.
    document: String,
}

impl Action for DescribeState {
    const NAME: &'static str = "InnkeeperDescribeState";
    type Response = Response;

    /// The documents are those of all accounts: they are for the operator's.
    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        let own = &context.agent.config.account;
        if context.caller.account == *own {
            return Ok(());
        }
        let message = format!("Only the account {own} may see what belongs to all accounts.");
        Err(ApiError::new("UnauthorizedOperation", message))
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let documents = context.agent.state.read().documents().map_err(ApiError::internal)?;
        let is_wanted = |document: &Document| self.key.as_ref().is_none_or(|key| document.is_one_of(key));
        let wanted = documents.into_iter().filter(is_wanted).map(Document::without_secrets);
        let items = wanted.map(|Document { key, version, document }| Item {
            key,
            version,
            document: document.to_string(),
        });
        Ok(Response { document_set: items.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Caller;
    use crate::records::{Record, Subnet};
    use crate::serve::Agent;

    fn describe_as(account: &str, key: Option<&str>) -> Result<Vec<Item>, ApiError> {
        let agent = Agent::for_tests();
        let caller = Caller::root(account, "AKIA");
        let context = Context { agent: &agent, caller: &caller, request_id: "r", digest: "d" };
        let request = DescribeState { key: key.map(str::to_owned) };
        request.check(context)?;
        Ok(request.run(context)?.document_set)
    }

    fn describe(key: Option<&str>) -> Vec<Item> {
        describe_as("000000000000", key).unwrap()
    }

    #[test]
    fn other_accounts_do_not_see_everything() {
        assert_eq!(describe_as("123456789012", None).unwrap_err().code, "UnauthorizedOperation");
    }

    #[test]
    fn documents_are_shown_by_kind_and_without_secrets() {
        let subnets = describe(Some("subnet"));
        assert_eq!(subnets.len(), 3);
        assert!(
            subnets
                .iter()
                .all(|item| item.key.starts_with("subnet/subnet-") && item.version == Subnet::VERSION)
        );
        assert!(describe(None).len() > 6);
        assert_eq!(describe(Some("instance")), []);
        let keys = describe(Some("access-key"));
        assert!(keys[0].document.contains(r#""secret":"(masked)""#), "{}", keys[0].document);
    }
}
