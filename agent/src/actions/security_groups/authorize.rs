//! AuthorizeSecurityGroupIngress and AuthorizeSecurityGroupEgress.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::permissions::{Allowed, IpPermission, IpRange, UserIdGroupPair, check_count};
use super::rule_item::RuleItem;
use super::{meant, spread_all};
use crate::query::tags::{TagSpecification, specified};
use crate::query::{Action, ApiError, Context};
use crate::records::{Rule, SecurityGroup};
use crate::state::World;

/// Adds rules about what comes in.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct AuthorizeSecurityGroupIngress(Request);

/// Adds rules about what goes out.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct AuthorizeSecurityGroupEgress(Request);

/// All of the rules are added, or none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Request {
    group_id: Option<String>,
    group_name: Option<String>,
    #[serde(default)]
    ip_permissions: Vec<IpPermission>,
    ip_protocol: Option<String>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr_ip: Option<String>,
    source_security_group_name: Option<String>,
    source_security_group_owner_id: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

/// A permission in the form of before there were lists of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Flat {
    pub ip_protocol: Option<String>,
    pub from_port: Option<i32>,
    pub to_port: Option<i32>,
    pub cidr_ip: Option<String>,
    pub source_security_group_name: Option<String>,
    pub source_security_group_owner_id: Option<String>,
}

impl Flat {
    /// The permissions of a request, in whatever form it has them; none if it has none.
    pub fn or(self, permissions: &[IpPermission], is_egress: bool) -> Result<Vec<IpPermission>, ApiError> {
        let is_given = self.ip_protocol.is_some()
            || self.from_port.is_some()
            || self.to_port.is_some()
            || self.cidr_ip.is_some()
            || self.source_security_group_name.is_some();
        if !is_given {
            return Ok(permissions.to_vec());
        }
        if is_egress || !permissions.is_empty() {
            let message = "IpProtocol, FromPort, ToPort, CidrIp and SourceSecurityGroupName go neither with \
                           IpPermissions nor with rules about what goes out: use IpPermissions.";
            return Err(ApiError::combination(message));
        }
        let range = self.cidr_ip.map(|cidr_ip| IpRange { cidr_ip, description: None });
        let Some(group_name) = self.source_security_group_name else {
            return Ok(vec![IpPermission {
                ip_protocol: self.ip_protocol,
                from_port: self.from_port,
                to_port: self.to_port,
                ip_ranges: range.into_iter().collect(),
                ..IpPermission::default()
            }]);
        };
        if range.is_some() || self.ip_protocol.is_some() || self.from_port.is_some() || self.to_port.is_some()
        {
            let message = "The parameter SourceSecurityGroupName cannot be used with CidrIp, IpProtocol, FromPort \
                           or ToPort: use IpPermissions.";
            return Err(ApiError::combination(message));
        }
        let pair = UserIdGroupPair {
            user_id: self.source_security_group_owner_id,
            group_name: Some(group_name),
            ..UserIdGroupPair::default()
        };
        let all = |(protocol, first, last): (&str, i32, i32)| IpPermission {
            ip_protocol: Some(protocol.to_owned()),
            from_port: Some(first),
            to_port: Some(last),
            groups: vec![pair.clone()],
            ..IpPermission::default()
        };
        // EC2's documentation: full ICMP, UDP and TCP access.
        Ok([("icmp", -1, -1), ("tcp", 0, 65_535), ("udp", 0, 65_535)].map(all).to_vec())
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    #[serde(rename = "return")]
    done: bool,
    security_group_rule_set: Vec<RuleItem>,
}

impl Request {
    fn tags(&self) -> Result<BTreeMap<String, String>, ApiError> {
        let kind = "security-group-rule";
        Ok(specified(&self.tags, &[kind])?.remove(kind).unwrap_or_default())
    }

    /// The group as it will be, and the new rules.
    fn plan(
        &self,
        world: &World,
        context: Context<'_>,
        is_egress: bool,
    ) -> Result<(SecurityGroup, Vec<Rule>), ApiError> {
        let group = meant(world, context, self.group_id.as_deref(), self.group_name.as_deref())?;
        let flat = Flat {
            ip_protocol: self.ip_protocol.clone(),
            from_port: self.from_port,
            to_port: self.to_port,
            cidr_ip: self.cidr_ip.clone(),
            source_security_group_name: self.source_security_group_name.clone(),
            source_security_group_owner_id: self.source_security_group_owner_id.clone(),
        };
        let permissions = flat.or(&self.ip_permissions, is_egress)?;
        if permissions.is_empty() {
            return Err(ApiError::missing("ipPermissions"));
        }
        let mut new = Vec::new();
        for (allowed, description) in spread_all(world, context, group, &permissions)? {
            if group.rules.iter().any(|rule| rule.is_egress == is_egress && Allowed::of(rule) == allowed) {
                let message = format!("the specified rule \"{allowed}\" already exists");
                return Err(ApiError::new("InvalidPermission.Duplicate", message));
            }
            new.push(allowed.into_rule(is_egress, description));
        }
        let mut group = SecurityGroup::clone(group);
        group.rules.extend(new.iter().cloned());
        check_count(&group.rules)?;
        Ok((group, new))
    }

    fn run(&self, context: Context<'_>, is_egress: bool) -> Result<Response, ApiError> {
        let tags = self.tags()?;
        context.agent.state.change(|draft| {
            let (group, new) = self.plan(draft, context, is_egress)?;
            for rule in &new {
                draft.tag(&rule.id, tags.clone());
            }
            draft.put(group.clone());
            let items = new.iter().map(|rule| RuleItem::new(draft, context, &group, rule)).collect();
            Ok(Response { done: true, security_group_rule_set: items })
        })
    }
}

impl Action for AuthorizeSecurityGroupIngress {
    const NAME: &'static str = "AuthorizeSecurityGroupIngress";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.tags()?;
        self.0.plan(&context.agent.state.read(), context, false).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        self.0.run(context, false)
    }
}

impl Action for AuthorizeSecurityGroupEgress {
    const NAME: &'static str = "AuthorizeSecurityGroupEgress";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.tags()?;
        self.0.plan(&context.agent.state.read(), context, true).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        self.0.run(context, true)
    }
}
