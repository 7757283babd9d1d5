//! What a role may do: IAM's policy documents, as far as they are evaluated here.
//!
//! A statement allows or denies actions by their names, such as `ec2:DescribeInstances`; a denial wins, and what nobody
//! allows is denied. A document that says more, such as a condition or a narrower resource, is refused when it is put: it
//! would mean something else here than on paper. The language is IAM's, "IAM JSON policy elements reference".

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::query::filters::matches;

/// Who asks for the credentials of an instance profile's role, in trust policies.
const EC2: &str = "ec2.amazonaws.com";

/// What the names of the operator's own actions begin with.
const OPERATOR: &str = "innkeeper:";

/// Why a document is not a policy that can be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// What policies say of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may be done.
    Allowed,
    /// No statement allows it.
    NotAllowed,
    /// A statement denies it.
    Denied,
}

/// What a role may do, as one of its policies says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy(Vec<Rule>);

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    effect: Effect,
    actions: Actions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

/// `Action` or `NotAction`: patterns in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Actions {
    These(Vec<String>),
    AllBut(Vec<String>),
}

impl Policy {
    /// Reads the policy of a role.
    pub fn parse(document: &str) -> Result<Self, Malformed> {
        let rule = |statement: Statement| {
            if statement.principal.is_some() || statement.not_principal.is_some() {
                let reason = "Policy document should not specify a principal: it says what its role may do.";
                return Err(Malformed::new(reason));
            }
            statement.every_resource()?;
            Ok(Rule { effect: statement.effect, actions: statement.actions()? })
        };
        statements(document)?.into_iter().map(rule).collect::<Result<_, _>>().map(Self)
    }
}

impl Policy {
    /// Whether it allows any of the operator's own actions.
    pub fn is_for_operators(&self) -> bool {
        let names_one = |actions: &Actions| match actions {
            Actions::These(patterns) => patterns.iter().any(|pattern| pattern.starts_with(OPERATOR)),
            Actions::AllBut(_) => false,
        };
        self.0.iter().any(|rule| rule.effect == Effect::Allow && names_one(&rule.actions))
    }
}

/// What policies together say of an action, such as `ec2:DescribeInstances`.
pub fn decide(policies: &[Policy], action: &str) -> Decision {
    let action = action.to_ascii_lowercase();
    let mut decision = Decision::NotAllowed;
    for rule in policies.iter().flat_map(|policy| &policy.0) {
        match rule.effect {
            Effect::Deny if rule.actions.include(&action) => return Decision::Denied,
            Effect::Allow if rule.actions.grant(&action) => decision = Decision::Allowed,
            _ => {}
        }
    }
    decision
}

impl Actions {
    fn include(&self, action: &str) -> bool {
        match self {
            Self::These(patterns) => patterns.iter().any(|pattern| matches(pattern, action)),
            Self::AllBut(patterns) => !patterns.iter().any(|pattern| matches(pattern, action)),
        }
    }

    /// What is meant when an action is allowed. The operator's own actions have to be named as such: `*` was written
    /// with EC2 in mind.
    fn grant(&self, action: &str) -> bool {
        match self {
            Self::These(patterns) if action.starts_with(OPERATOR) => {
                patterns.iter().any(|pattern| pattern.starts_with(OPERATOR) && matches(pattern, action))
            }
            Self::AllBut(_) if action.starts_with(OPERATOR) => false,
            _ => self.include(action),
        }
    }
}

/// Whether a role's trust policy lets EC2 hand out the role's credentials.
pub fn trusts_ec2(document: &str) -> Result<bool, Malformed> {
    let (mut trusted, mut denied) = (false, false);
    // All of them are looked at, so that none is taken that cannot be understood.
    for statement in statements(document)? {
        if statement.resource.is_some() || statement.not_resource.is_some() {
            return Err(Malformed::new("Has prohibited field Resource: a trust policy is about its role."));
        }
        if statement.not_principal.is_some() {
            return Err(Malformed::new("NotPrincipal is not evaluated by this host: name who is trusted."));
        }
        let Some(principal) = &statement.principal else {
            return Err(Malformed::new("Missing required field Principal"));
        };
        if statement.actions()?.include("sts:assumerole") && principal.covers_ec2() {
            match statement.effect {
                Effect::Deny => denied = true,
                Effect::Allow => trusted = true,
            }
        }
    }
    Ok(trusted && !denied)
}

/// A document, as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: OneOrMany<Statement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Statement {
    sid: Option<String>,
    effect: Effect,
    action: Option<OneOrMany<String>>,
    not_action: Option<OneOrMany<String>>,
    resource: Option<OneOrMany<String>>,
    not_resource: Option<IgnoredAny>,
    principal: Option<Principal>,
    not_principal: Option<IgnoredAny>,
    condition: Option<IgnoredAny>,
}

/// The statements of a document, as far as a policy of a role and a trust policy are alike.
fn statements(document: &str) -> Result<Vec<Statement>, Malformed> {
    let document: Document = serde_json::from_str(document)
        .map_err(|error| Malformed::new(format!("Syntax errors in policy: {error}.")))?;
    if let Some(version) = &document.version
        && !matches!(version.as_str(), "2012-10-17" | "2008-10-17")
    {
        let reason = format!("The version {version} is not one of: 2012-10-17, 2008-10-17.");
        return Err(Malformed::new(reason));
    }
    let statements = document.statement.0;
    if statements.is_empty() {
        return Err(Malformed::new("Missing required field Statement: there is none in the list."));
    }
    let mut sids = Vec::new();
    for statement in &statements {
        if statement.condition.is_some() {
            let reason = "Condition is not evaluated by this host: write statements that hold without.";
            return Err(Malformed::new(reason));
        }
        let Some(sid) = &statement.sid else { continue };
        if !sid.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Malformed::new(format!("Statement IDs (SID) must be alpha-numeric: {sid:?}.")));
        }
        if sids.contains(&sid) {
            let reason = format!("Statement IDs (SID) in a single policy must be unique: {sid:?}.");
            return Err(Malformed::new(reason));
        }
        sids.push(sid);
    }
    Ok(statements)
}

impl Statement {
    fn actions(&self) -> Result<Actions, Malformed> {
        let (patterns, kind): (_, fn(Vec<String>) -> Actions) = match (&self.action, &self.not_action) {
            (Some(these), None) => (these, Actions::These),
            (None, Some(others)) => (others, Actions::AllBut),
            (None, None) => return Err(Malformed::new("Policy statement must contain actions.")),
            (Some(_), Some(_)) => {
                return Err(Malformed::new("Action and NotAction are in one statement: leave one out."));
            }
        };
        if patterns.0.is_empty() {
            return Err(Malformed::new("Policy statement must contain actions: the list has none."));
        }
        if let Some(bad) = patterns.0.iter().find(|pattern| !is_pattern(pattern)) {
            return Err(Malformed::new(format!(
                "Actions must be prefaced by a vendor, e.g., iam, sts, ec2, and have letters, digits, * and ? only: \
                 {bad:?}."
            )));
        }
        Ok(kind(patterns.0.iter().map(|pattern| pattern.to_ascii_lowercase()).collect()))
    }

    /// Whether it is about every resource, as it has to be.
    fn every_resource(&self) -> Result<(), Malformed> {
        if self.not_resource.is_some() {
            let reason = "NotResource is not evaluated by this host: use \"Resource\": \"*\".";
            return Err(Malformed::new(reason));
        }
        let Some(OneOrMany(resources)) = &self.resource else {
            return Err(Malformed::new("Policy statement must contain resources."));
        };
        // Next to the star, the others add nothing.
        if resources.iter().any(|resource| resource == "*") {
            return Ok(());
        }
        let Some(first) = resources.first() else {
            return Err(Malformed::new("Policy statement must contain resources: the list has none."));
        };
        Err(Malformed::new(format!(
            "The resource {first:?} is narrower than \"*\", which this host does not evaluate: use \"Resource\": \"*\"."
        )))
    }
}

/// Whether a text is `*`, or a service and a pattern.
fn is_pattern(text: &str) -> bool {
    let Some((service, action)) = text.split_once(':') else { return text == "*" };
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_wild = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'*' | b'?');
    !service.is_empty() && service.bytes().all(is_word) && !action.is_empty() && action.bytes().all(is_wild)
}

/// Who is trusted.
enum Principal {
    Everybody,
    /// The services among them. Nobody else can come here.
    Services(Vec<String>),
}

impl Principal {
    fn covers_ec2(&self) -> bool {
        match self {
            Self::Everybody => true,
            Self::Services(names) => names.iter().any(|name| name == EC2),
        }
    }
}

impl<'de> Deserialize<'de> for Principal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Kinds {
            #[serde(rename = "AWS")]
            accounts: Option<OneOrMany<String>>,
            #[serde(rename = "Service")]
            services: Option<OneOrMany<String>>,
            #[serde(rename = "Federated")]
            _federated: Option<IgnoredAny>,
            #[serde(rename = "CanonicalUser")]
            _canonical_user: Option<IgnoredAny>,
        }
        struct Who;
        impl<'de> Visitor<'de> for Who {
            type Value = Principal;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("\"*\", or a principal such as {\"Service\": \"ec2.amazonaws.com\"}")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Principal, E> {
                match text {
                    "*" => Ok(Principal::Everybody),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Principal, A::Error> {
                let kinds = Kinds::deserialize(MapAccessDeserializer::new(fields))?;
                let everybody = kinds.accounts.is_some_and(|names| names.0.iter().any(|name| name == "*"));
                let services = kinds.services.map(|names| names.0).unwrap_or_default();
                Ok(if everybody { Principal::Everybody } else { Principal::Services(services) })
            }
        }
        deserializer.deserialize_any(Who)
    }
}

/// A value, or a list of them: the language makes no difference where there is one.
struct OneOrMany<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Values<T> {
            type Value = Vec<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a value or a list")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
                T::deserialize(text.into_deserializer()).map(|value| vec![value])
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Vec<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields)).map(|value| vec![value])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(Values(PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn policy(statements: Value) -> Policy {
        Policy::parse(&json!({ "Version": "2012-10-17", "Statement": statements }).to_string()).unwrap()
    }

    fn allow(actions: Value) -> Value {
        json!({ "Effect": "Allow", "Action": actions, "Resource": "*" })
    }

    fn deny(actions: Value) -> Value {
        json!({ "Effect": "Deny", "Action": actions, "Resource": "*" })
    }

    #[test]
    fn a_denial_wins_and_what_nobody_allows_is_denied() {
        use Decision::{Allowed, Denied, NotAllowed};
        let not =
            |effect: &str, actions: &str| json!({"Effect": effect, "NotAction": actions, "Resource": ["*"]});
        let stop = "ec2:StopInstances";
        for (statements, action, expected) in [
            (allow(json!("ec2:StopInstances")), stop, Allowed),
            (allow(json!(["ec2:StartInstances", "EC2:stopinstances"])), stop, Allowed),
            (allow(json!("ec2:Stop*")), stop, Allowed),
            (allow(json!("ec2:St?pInstances")), stop, Allowed),
            (allow(json!("*")), stop, Allowed),
            (allow(json!("ec2:*")), stop, Allowed),
            (allow(json!("ec2:*")), "iam:GetRole", NotAllowed),
            (allow(json!("ec2:Describe*")), stop, NotAllowed),
            (allow(json!("ec2:StopInstance")), stop, NotAllowed),
            (allow(json!("s3:GetObject")), stop, NotAllowed),
            (json!([allow(json!("*")), deny(json!("ec2:Stop*"))]), stop, Denied),
            (json!([deny(json!("ec2:Stop*")), allow(json!("*"))]), stop, Denied),
            (json!([deny(json!("ec2:Stop*")), allow(json!("*"))]), "ec2:StartInstances", Allowed),
            (not("Allow", "ec2:*"), stop, NotAllowed),
            (not("Allow", "iam:*"), stop, Allowed),
            (json!([allow(json!("*")), not("Deny", "ec2:Describe*")]), stop, Denied),
            (json!([allow(json!("*")), not("Deny", "ec2:Describe*")]), "ec2:DescribeVpcs", Allowed),
        ] {
            assert_eq!(decide(&[policy(statements.clone())], action), expected, "{statements}: {action}");
        }
        assert_eq!(decide(&[], stop), NotAllowed);
        let several = [policy(allow(json!("ec2:*"))), policy(deny(json!("ec2:StopInstances")))];
        assert_eq!((decide(&several, stop), decide(&several, "ec2:StartInstances")), (Denied, Allowed));
    }

    #[test]
    fn the_operators_actions_have_to_be_named_as_such_to_be_allowed() {
        use Decision::{Allowed, Denied, NotAllowed};
        let host = "innkeeper:DescribeHost";
        for (statements, expected) in [
            (allow(json!("*")), NotAllowed),
            (json!({ "Effect": "Allow", "NotAction": "iam:*", "Resource": "*" }), NotAllowed),
            (allow(json!("innkeeper:*")), Allowed),
            (allow(json!(["ec2:*", "Innkeeper:Describe*"])), Allowed),
            (json!([allow(json!("innkeeper:*")), deny(json!("*"))]), Denied),
        ] {
            assert_eq!(decide(&[policy(statements.clone())], host), expected, "{statements}");
        }
    }

    #[test]
    fn what_is_not_evaluated_is_refused_and_not_ignored() {
        let with = |name: &str, value: Value| {
            let mut statement = allow(json!("ec2:*"));
            statement[name] = value;
            json!({ "Version": "2012-10-17", "Statement": [statement] })
        };
        let without = |name: &str| {
            let mut statement = allow(json!("ec2:*"));
            statement.as_object_mut().unwrap().remove(name);
            json!({ "Statement": statement })
        };
        let narrow = json!(["arn:aws:ec2:*:*:instance/*"]);
        for (document, part) in [
            (with("Condition", json!({ "Bool": { "aws:SecureTransport": "true" } })), "Condition is not"),
            (with("Condition", json!({})), "Condition is not"),
            (with("Resource", narrow.clone()), "narrower than \"*\""),
            (with("Resource", json!([])), "must contain resources"),
            (with("NotResource", narrow), "NotResource is not"),
            (with("Principal", json!("*")), "should not specify a principal"),
            (with("NotPrincipal", json!("*")), "should not specify a principal"),
            (with("NotAction", json!("iam:*")), "leave one out"),
            (with("Colour", json!("red")), "unknown field `Colour`"),
            (with("Effect", json!("Perhaps")), "unknown variant `Perhaps`"),
            (with("Action", json!([])), "the list has none"),
            (with("Action", json!(7)), "invalid type"),
            (with("Action", json!("DescribeInstances")), "prefaced by a vendor"),
            (with("Action", json!("ec2:Describe Instances")), "prefaced by a vendor"),
            (with("Action", json!("ec*:Describe")), "prefaced by a vendor"),
            (with("Action", json!("ec2:${aws:username}")), "prefaced by a vendor"),
            (with("Action", json!("ec2:\\*")), "prefaced by a vendor"),
            (with("Sid", json!("a b")), "alpha-numeric"),
            (without("Action"), "must contain actions"),
            (without("Resource"), "must contain resources"),
            (without("Effect"), "missing field `Effect`"),
            (json!({ "Version": "2024-01-01", "Statement": allow(json!("*")) }), "2012-10-17, 2008-10-17"),
            (json!({ "Version": "2012-10-17" }), "missing field `Statement`"),
            (json!({ "Statement": [] }), "none in the list"),
            (json!({ "Statement": "allow" }), "Syntax errors"),
            (json!([]), "Syntax errors"),
        ] {
            let error = Policy::parse(&document.to_string()).unwrap_err().to_string();
            assert!(error.contains(part), "{document}: {error}");
        }
        let twice = json!({ "Sid": "A", "Effect": "Allow", "Action": "*", "Resource": "*" });
        let error = Policy::parse(&json!({ "Statement": [twice, twice] }).to_string()).unwrap_err();
        assert!(error.to_string().contains("unique"), "{error}");
        let effects =
            r#"{"Statement": {"Effect": "Deny", "Effect": "Allow", "Action": "*", "Resource": "*"}}"#;
        assert!(Policy::parse(effects).unwrap_err().to_string().contains("duplicate field `Effect`"));
        assert!(Policy::parse("{").is_err() && Policy::parse("").is_err());
    }

    #[test]
    fn a_trust_policy_says_whether_ec2_is_trusted() {
        let statement = |effect: &str, principal: Value, action: &str| json!({ "Effect": effect, "Principal": principal, "Action": action });
        let ec2 = json!({ "Service": "ec2.amazonaws.com" });
        let both = json!({ "Service": ["lambda.amazonaws.com", "ec2.amazonaws.com"], "AWS": "000000000000" });
        let allow = |principal: &Value| statement("Allow", principal.clone(), "sts:AssumeRole");
        for (statements, expected) in [
            (allow(&ec2), true),
            (allow(&both), true),
            (allow(&json!("*")), true),
            (allow(&json!({ "AWS": ["*"] })), true),
            (allow(&json!({ "AWS": "000000000000" })), false),
            (allow(&json!({ "Service": "lambda.amazonaws.com" })), false),
            (statement("Allow", ec2.clone(), "sts:*"), true),
            (statement("Allow", ec2.clone(), "sts:TagSession"), false),
            (json!([allow(&ec2), statement("Deny", json!("*"), "*")]), false),
            (json!([statement("Deny", ec2.clone(), "sts:AssumeRole"), allow(&ec2)]), false),
        ] {
            let document = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
            assert_eq!(trusts_ec2(&document), Ok(expected), "{document}");
        }
        let mut resource = allow(&ec2);
        resource["Resource"] = json!("*");
        let mut condition = allow(&ec2);
        condition["Condition"] = json!({});
        let nobody = json!({ "Effect": "Allow", "Action": "sts:AssumeRole" });
        let not = json!({ "Effect": "Allow", "NotPrincipal": "*", "Action": "sts:AssumeRole" });
        for (statement, part) in [
            (resource, "prohibited field Resource"),
            (condition, "Condition is not"),
            (nobody, "required field Principal"),
            (not, "NotPrincipal is not"),
            (allow(&json!("me")), "Syntax errors"),
            (allow(&json!({ "Pet": "cat" })), "unknown field `Pet`"),
        ] {
            let error = trusts_ec2(&json!({ "Statement": statement }).to_string()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    fn rules() -> impl Strategy<Value = Vec<(bool, bool, Vec<String>)>> {
        let patterns = prop::collection::vec("\\*|(ec2|iam):[ab*?]{1,3}", 1..4);
        prop::collection::vec((any::<bool>(), any::<bool>(), patterns), 0..5)
    }

    fn written(rules: &[(bool, bool, Vec<String>)]) -> Vec<Policy> {
        let statement = |(allow, is_not, patterns): &(bool, bool, Vec<String>)| {
            let name = if *is_not { "NotAction" } else { "Action" };
            json!({ "Effect": if *allow { "Allow" } else { "Deny" }, name: patterns, "Resource": "*" })
        };
        rules.iter().map(|rule| policy(statement(rule))).collect()
    }

    proptest! {
        #[test]
        fn order_and_case_do_not_matter(rules in rules(), action in "(ec2|iam):[ab]{1,3}") {
            let policies = written(&rules);
            let decision = decide(&policies, &action);
            let mut reversed = policies.clone();
            reversed.reverse();
            prop_assert_eq!(decide(&reversed, &action), decision);
            prop_assert_eq!(decide(&policies, &action.to_uppercase()), decision);
        }

        #[test]
        fn a_denial_never_allows_more_and_a_permission_never_denies_more(
            rules in rules(),
            more in rules(),
            action in "(ec2|iam):[ab]{1,3}",
        ) {
            let with = |allow: bool| {
                let more = more.iter().filter(|rule| rule.0 == allow).cloned();
                decide(&written(&rules.iter().cloned().chain(more).collect::<Vec<_>>()), &action)
            };
            let decision = decide(&written(&rules), &action);
            if decision != Decision::Allowed {
                prop_assert_ne!(with(false), Decision::Allowed);
            }
            if decision == Decision::Allowed {
                prop_assert_eq!(with(true), Decision::Allowed);
            }
            prop_assert_eq!(with(true) == Decision::Denied, decision == Decision::Denied);
        }

        #[test]
        fn no_document_makes_it_panic(document in "\\PC{0,60}|\\{\"Statement\":[\\[\\]{}\",:a-zA-Z*0-9]{0,60}\\}") {
            let _ = Policy::parse(&document);
            let _ = trusts_ec2(&document);
        }
    }
}
