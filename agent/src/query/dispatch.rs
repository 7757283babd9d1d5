//! From an action's name to its answer.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::query::ApiError;
use crate::serve::Agent;

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The 12-digit account.
    pub account: String,
    /// What the request was signed with.
    pub access_key: String,
    /// For `GetCallerIdentity`.
    pub arn: String,
    /// For `GetCallerIdentity`.
    pub user_id: String,
}

/// What an action works with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Everything that the agent has.
    pub agent: &'a Agent,
    /// Who asks.
    pub caller: &'a Caller,
    /// The request's id, a UUID.
    pub request_id: &'a str,
    /// A hash of its parameters but for the client token.
    pub digest: &'a str,
}

/// One of EC2's actions. The type is its request: field names in `PascalCase` are EC2's parameters
/// (`#[serde(rename_all = "PascalCase", deny_unknown_fields)]`); `Vec` is a list (`InstanceId.1`), a struct a nested
/// one (`Placement.AvailabilityZone`). `Action`, `Version`, `DryRun` and the signature's parameters are not among them.
///
/// It runs on a thread that may block, and leaves slow work to the instances' actors.
pub trait Action: DeserializeOwned + Send + 'static {
    /// EC2's name for it.
    const NAME: &'static str;
    /// What is answered: a struct whose field names in `camelCase` are EC2's elements. `None` is left out, and a `Vec`
    /// is a list of `item` elements. For an action without output, `()` makes `<return>true</return>`.
    type Response: Serialize;

    /// What a request with `DryRun` is to be spared. Called with and without; checks, and changes nothing.
    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        let _ = context;
        Ok(())
    }

    /// Does it.
    fn run(self, context: Context<'_>) -> Result<Self::Response, ApiError>;
}

/// All actions, by name.
#[derive(Default)]
pub struct Registry;

impl Registry {
    /// Makes an action known.
    pub fn add<A: Action>(&mut self) {
        let _ = A::NAME;
    }
}
