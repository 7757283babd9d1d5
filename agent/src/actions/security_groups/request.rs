//! What requests to add rules and to take them away have in common: the group, and permissions in two forms.

use super::permissions::{IpPermission, IpRange, UserIdGroupPair};
use crate::query::ApiError;

/// Defines a request about rules, with what only that one has.
macro_rules! about_rules {
    ($(#[$attribute:meta])* struct $name:ident { $($more:tt)* }) => {
        $(#[$attribute])*
        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        struct $name {
            group_id: Option<String>,
            group_name: Option<String>,
            #[serde(default)]
            ip_permissions: Vec<$crate::actions::security_groups::permissions::IpPermission>,
            ip_protocol: Option<String>,
            from_port: Option<i32>,
            to_port: Option<i32>,
            cidr_ip: Option<String>,
            source_security_group_name: Option<String>,
            source_security_group_owner_id: Option<String>,
            $($more)*
        }

        impl $name {
            /// The group that it is about.
            fn group<'w>(
                &self,
                world: &'w $crate::state::World,
                context: $crate::query::Context<'_>,
            ) -> Result<&'w std::sync::Arc<$crate::records::SecurityGroup>, $crate::query::ApiError> {
                let (id, name) = (self.group_id.as_deref(), self.group_name.as_deref());
                $crate::actions::security_groups::meant(world, context, id, name)
            }

            /// The permissions, in whatever form it has them; none if it has none.
            fn permissions(
                &self,
                is_egress: bool,
            ) -> Result<
                Vec<$crate::actions::security_groups::permissions::IpPermission>,
                $crate::query::ApiError,
            > {
                let flat = $crate::actions::security_groups::request::Flat {
                    ip_protocol: self.ip_protocol.clone(),
                    from_port: self.from_port,
                    to_port: self.to_port,
                    cidr_ip: self.cidr_ip.clone(),
                    source_security_group_name: self.source_security_group_name.clone(),
                    source_security_group_owner_id: self.source_security_group_owner_id.clone(),
                };
                flat.or(&self.ip_permissions, is_egress)
            }
        }
    };
}

pub(super) use about_rules;

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
