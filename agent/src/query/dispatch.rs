//! From an action's name to its answer.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::iam;
use crate::query::{ApiError, parameters, xml};
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
    /// The id of the role whose policies say what it may do. Without one it is the account, which may do everything.
    pub role: Option<String>,
}

impl Caller {
    /// The account itself, by one of its access keys.
    pub fn root(account: &str, access_key: &str) -> Self {
        Self {
            account: account.to_owned(),
            access_key: access_key.to_owned(),
            arn: format!("arn:aws:iam::{account}:root"),
            user_id: account.to_owned(),
            role: None,
        }
    }
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

/// Whose action it is. All are at one address, and differ in how answers look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// EC2.
    Ec2,
    /// The identity and access management, which has roles and instance profiles.
    Iam,
    /// The security token service, which clients ask who they are.
    Sts,
}

impl Service {
    /// Its name where a request is signed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Iam => "iam",
            Self::Sts => "sts",
        }
    }

    /// The service with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ec2, Self::Iam, Self::Sts].into_iter().find(|service| service.name() == name)
    }

    /// Whether it is the same everywhere, so that clients sign for us-east-1 wherever they are.
    pub fn is_global(self) -> bool {
        self != Self::Ec2
    }

    /// The XML namespace of its answers.
    pub fn namespace(self) -> &'static str {
        match self {
            Self::Ec2 => "http://ec2.amazonaws.com/doc/2016-11-15/",
            Self::Iam => "https://iam.amazonaws.com/doc/2010-05-08/",
            Self::Sts => "https://sts.amazonaws.com/doc/2011-06-15/",
        }
    }
}

/// One of EC2's actions, or another service's. The type is its request: field names in `PascalCase` are EC2's parameters
/// (`#[serde(rename_all = "PascalCase", deny_unknown_fields)]`); `Vec` is a list (`InstanceId.1`), a struct a nested
/// one (`Placement.AvailabilityZone`). `Action`, `Version`, `DryRun` and the signature's parameters are not among them.
///
/// It runs on a thread that may block, and leaves slow work to the instances' actors.
pub trait Action: DeserializeOwned + Send + 'static {
    /// EC2's name for it.
    const NAME: &'static str;
    /// Whose it is.
    const SERVICE: Service = Service::Ec2;
    /// What is answered: a struct whose field names in `camelCase` are EC2's elements, or in `PascalCase` another
    /// service's. `None` is left out, and a `Vec` is a list of `item` elements (EC2) or of `member` elements. For an
    /// action without output, `()` makes `<return>true</return>` (EC2) or nothing.
    type Response: Serialize;

    /// What a request with `DryRun` is to be spared. Called with and without; checks, and changes nothing.
    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        let _ = context;
        Ok(())
    }

    /// Does it.
    fn run(self, context: Context<'_>) -> Result<Self::Response, ApiError>;
}

/// A request, but for who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The action's name.
    pub action: String,
    /// Whether it is only to be said if it would be done.
    pub dry_run: bool,
    /// A hash of the parameters but for the client token.
    pub digest: String,
    /// Those of the action itself.
    pub parameters: Vec<(String, String)>,
}

impl Call {
    /// Takes the parameters apart: those that every request has, and those of the action.
    pub fn read(all: Vec<(String, String)>) -> Result<Self, ApiError> {
        let (mut action, mut version, mut dry_run) = (None, None, None);
        let mut parameters = Vec::with_capacity(all.len());
        for (name, value) in all {
            let common = match name.as_str() {
                "Action" => &mut action,
                "Version" => &mut version,
                "DryRun" => &mut dry_run,
                // An empty one is none.
                "ClientToken" if value.is_empty() => continue,
                _ if name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("X-Amz-")) => continue,
                _ => {
                    parameters.push((name, value));
                    continue;
                }
            };
            if common.replace(value).is_some() {
                let message = format!("The parameter {name} is there more than once");
                return Err(ApiError::combination(message));
            }
        }
        let missing = || ApiError::new("MissingAction", "The request must contain the parameter Action");
        let action = action.filter(|name| !name.is_empty()).ok_or_else(missing)?;
        let version = version.ok_or_else(|| ApiError::missing("Version"))?;
        if !is_date(&version) {
            let message = format!("The requested version ({version}) is not a date such as 2016-11-15");
            return Err(ApiError::new("NoSuchVersion", message));
        }
        let dry_run = match dry_run {
            None => false,
            Some(text) => parameters::boolean(&text)
                .ok_or_else(|| ApiError::invalid(&text, "DryRun", "Expecting true or false."))?,
        };
        let digest = digest(&action, &parameters);
        Ok(Self { action, dry_run, digest, parameters })
    }
}

fn is_date(version: &str) -> bool {
    version.len() == 10
        && version.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// A hash of what a request asks for, whatever the order of its parameters.
fn digest(action: &str, parameters: &[(String, String)]) -> String {
    let mut sorted: Vec<_> = parameters.iter().filter(|(name, _)| name != "ClientToken").collect();
    sorted.sort();
    let mut hash = Sha256::new();
    // With its length before it, no text can pass for the end of one and the beginning of another.
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    add(action);
    for (name, value) in sorted {
        add(name);
        add(value);
    }
    hex(&hash.finalize())
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An action without its type.
#[derive(Clone, Copy)]
struct Entry {
    service: Service,
    handle: fn(&Call, Context<'_>) -> Result<String, ApiError>,
}

/// All actions, by name.
#[derive(Default)]
pub struct Registry {
    actions: BTreeMap<&'static str, Entry>,
}

impl Registry {
    /// Makes an action known.
    pub fn add<A: Action>(&mut self) {
        self.actions.insert(A::NAME, Entry { service: A::SERVICE, handle: handle::<A> });
    }

    /// The names of all actions, in their order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.actions.keys().copied()
    }

    /// Runs an action, for a request that was signed for `service`, if the caller may do that. Blocks.
    pub fn answer(&self, service: Service, call: &Call, context: Context<'_>) -> Result<String, ApiError> {
        let entry = self.find(service, &call.action)?;
        iam::authorise(
            &context.agent.state.read(),
            context.caller,
            service,
            &iam::permission(service, &call.action),
        )?;
        (entry.handle)(call, context).map_err(|error| error.of(service))
    }

    fn find(&self, service: Service, action: &str) -> Result<Entry, ApiError> {
        let Some(&entry) = self.actions.get(action) else { return Err(self.invalid(action)) };
        if entry.service == service {
            return Ok(entry);
        }
        let wanted = entry.service.name();
        let message = format!("Credential should be scoped to correct service: '{wanted}'.");
        Err(ApiError::new("SignatureDoesNotMatch", message))
    }

    /// The error for an action that is not known, which names one that may be meant.
    fn invalid(&self, action: &str) -> ApiError {
        let mut message = format!("The action {action} is not valid for this web service.");
        let near = self.names().map(|name| (distance(name, action), name)).min();
        if let Some((_, name)) = near.filter(|(distance, _)| *distance <= 3) {
            message = format!("{message} Did you mean {name}?");
        }
        ApiError::new("InvalidAction", message)
    }
}

fn handle<A: Action>(call: &Call, context: Context<'_>) -> Result<String, ApiError> {
    let action: A = parameters::parse(&call.parameters)?;
    // Whoever sends it does not want it to be done.
    if call.dry_run && A::SERVICE != Service::Ec2 {
        return Err(ApiError::new("UnknownParameter", "The parameter DryRun is EC2's: leave it out."));
    }
    action.check(context)?;
    if call.dry_run {
        let message = "Request would have succeeded, but DryRun flag is set.";
        return Err(ApiError::new("DryRunOperation", message));
    }
    let response = action.run(context)?;
    xml::answer(A::SERVICE, A::NAME, context.request_id, &response)
}

/// How many letters have to be added, taken away or changed to make one text of the other (Levenshtein), for texts
/// that can be names of actions.
fn distance(left: &str, right: &str) -> usize {
    if right.len() > 100 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, letter) in left.bytes().enumerate() {
        let mut diagonal = above;
        let mut before = above + 1;
        let mut next = vec![before];
        for (other, &up) in right.bytes().zip(row.iter().skip(1)) {
            before = (diagonal + usize::from(letter != other)).min(up + 1).min(before + 1);
            next.push(before);
            diagonal = up;
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::actions;

    /// Is allowed unless it says that it is not, and must never be run if it is to be refused.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase", deny_unknown_fields)]
    struct Probe {
        name: String,
        #[serde(default)]
        forbidden: bool,
    }

    #[derive(Serialize)]
    struct Named {
        name: String,
    }

    impl Action for Probe {
        const NAME: &'static str = "Probe";
        type Response = Named;

        fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
            let message = format!("{} is not authorized", context.caller.arn);
            if self.forbidden { Err(ApiError::new("UnauthorizedOperation", message)) } else { Ok(()) }
        }

        fn run(self, _: Context<'_>) -> Result<Named, ApiError> {
            assert!(!self.forbidden);
            Ok(Named { name: self.name })
        }
    }

    fn answer(service: Service, query: &str) -> Result<String, ApiError> {
        let mut registry = Registry::default();
        actions::register(&mut registry);
        registry.add::<Probe>();
        let caller = Caller::root("000000000000", "AKIA");
        let call = read(&format!("Version=2016-11-15&{query}"))?;
        let agent = Agent::for_tests();
        let context = Context { agent: &agent, caller: &caller, request_id: "id", digest: &call.digest };
        registry.answer(service, &call, context)
    }

    fn read(query: &str) -> Result<Call, ApiError> {
        Call::read(parameters::decode(query.as_bytes())?)
    }

    #[test]
    fn what_every_request_has_is_no_parameter_of_the_action() {
        let call = read(
            "Action=A&Version=2016-11-15&DryRun=true&X-Amz-Date=x&x-amz-algorithm=y&ClientToken=t&Name=n&é€éé=1",
        )
        .unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!((call.action.as_str(), call.dry_run), ("A", true));
        assert_eq!(call.parameters, [pair("ClientToken", "t"), pair("Name", "n"), pair("é€éé", "1")]);
        assert!(!read("Action=A&Version=2010-08-31").unwrap().dry_run);
        assert_eq!(read("Action=A&Version=2016-11-15&ClientToken=").unwrap().parameters, []);
    }

    #[test]
    fn what_every_request_has_is_checked() {
        for (query, code) in [
            ("Version=2016-11-15", "MissingAction"),
            ("Action=&Version=2016-11-15", "MissingAction"),
            ("Action=A", "MissingParameter"),
            ("Action=A&Version=", "NoSuchVersion"),
            ("Action=A&Version=2016-11-1x", "NoSuchVersion"),
            ("Action=A&Version=2016-11-15&DryRun=", "InvalidParameterValue"),
            ("Action=A&Version=2016-11-15&Version=2016-11-15", "InvalidParameterCombination"),
        ] {
            assert_eq!(read(query).unwrap_err().code, code, "{query}");
        }
    }

    #[test]
    fn a_digest_tells_apart_what_is_asked_for_and_nothing_else() {
        let digest = |query: &str| read(&format!("Version=2016-11-15&{query}")).unwrap().digest;
        let original = digest("Action=A&B=1&C=2");
        assert_eq!(original.len(), 64);
        for same in ["C=2&B=1&Action=A", "Action=A&B=1&C=2&ClientToken=x&DryRun=true&X-Amz-Date=z"] {
            assert_eq!(digest(same), original, "{same}");
        }
        for other in
            ["Action=B&B=1&C=2", "Action=A&B=1", "Action=A&B=1&C=3", "Action=A&B=1C&=2", "Action=A&B=2&C=1"]
        {
            assert_ne!(digest(other), original, "{other}");
        }
    }

    #[test]
    fn an_action_is_checked_then_run_unless_it_is_a_rehearsal() {
        let probe = |query: &str| answer(Service::Ec2, &format!("Action=Probe&{query}"));
        let document = probe("Name=x&DryRun=false").unwrap();
        assert!(document.ends_with("<requestId>id</requestId><name>x</name></ProbeResponse>"), "{document}");
        for (query, status, code) in [
            ("Name=x&DryRun=true", 412, "DryRunOperation"),
            ("Name=x&Forbidden=true", 403, "UnauthorizedOperation"),
            ("Name=x&Forbidden=true&DryRun=true", 403, "UnauthorizedOperation"),
            ("DryRun=true", 400, "MissingParameter"),
            ("Name=x&Colour=red", 400, "UnknownParameter"),
        ] {
            let error = probe(query).unwrap_err();
            assert_eq!((error.status(), error.code), (status, code), "{query}");
        }
    }

    #[test]
    fn a_caller_learns_who_it_is() {
        let document = answer(Service::Sts, "Action=GetCallerIdentity").unwrap();
        let identity = "<GetCallerIdentityResult><Arn>arn:aws:iam::000000000000:root</Arn>\
            <UserId>000000000000</UserId><Account>000000000000</Account></GetCallerIdentityResult>";
        assert!(document.contains(identity), "{document}");
    }

    #[test]
    fn an_action_is_found_by_its_name_and_service() {
        let mut registry = Registry::default();
        actions::register(&mut registry);
        assert!(registry.find(Service::Ec2, "DescribeRegions").is_ok());
        assert!(registry.find(Service::Sts, "GetCallerIdentity").is_ok());
        let error = |service, name| registry.find(service, name).err().unwrap();
        assert_eq!(error(Service::Ec2, "GetCallerIdentity").code, "SignatureDoesNotMatch");
        let unknown = error(Service::Ec2, "DescribeRegion");
        assert_eq!(unknown.code, "InvalidAction");
        assert_eq!(
            unknown.message,
            "The action DescribeRegion is not valid for this web service. Did you mean DescribeRegions?"
        );
        for far in ["RunTheWholeCloud", &"x".repeat(1_000_000)] {
            assert!(error(Service::Ec2, far).message.ends_with("is not valid for this web service."));
        }
    }

    #[test]
    fn distances_count_letters() {
        for (left, right, expected) in
            [("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("abc", "axc", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }
}
