//! The instance profiles that instances have. What a profile is, IAM knows.

mod associate_iam_instance_profile;
mod describe_iam_instance_profile_associations;
mod item;
mod specification;

use std::sync::Arc;

pub(super) use item::ProfileItem;
pub(super) use specification::{Specification, associate};

use crate::query::dispatch::Registry;
use crate::query::{ApiError, Context};
use crate::records::{Instance, InstanceState};
use crate::state::World;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<associate_iam_instance_profile::AssociateIamInstanceProfile>();
    registry.add::<associate_iam_instance_profile::DisassociateIamInstanceProfile>();
    registry.add::<associate_iam_instance_profile::ReplaceIamInstanceProfileAssociation>();
    registry.add::<describe_iam_instance_profile_associations::DescribeIamInstanceProfileAssociations>();
}

/// The account's instances that have a profile. Those that are terminated have left theirs.
fn associated<'w>(world: &'w World, context: Context<'w>) -> impl Iterator<Item = &'w Arc<Instance>> {
    world.all::<Instance>().filter(move |instance| {
        instance.instance_profile.is_some()
            && instance.owner == context.caller.account
            && instance.lifecycle.state != InstanceState::Terminated
    })
}

/// The instance with this association.
fn find<'w>(world: &'w World, context: Context<'w>, id: &str) -> Result<&'w Arc<Instance>, ApiError> {
    let is_it = |instance: &&Arc<Instance>| {
        instance.instance_profile.as_ref().is_some_and(|association| association.id.as_str() == id)
    };
    associated(world, context).find(is_it).ok_or_else(|| {
        let message = format!("An invalid association-id of '{id}' was given");
        ApiError::new("InvalidAssociationID.NotFound", message)
    })
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;
    use crate::iam;
    use crate::records::{Instance, InstanceState};

    #[test]
    fn an_instance_has_one_profile_which_is_changed_while_it_runs() {
        let client = Client::new();
        for name in ["web", "db"] {
            client.profile(name);
        }
        for state in [InstanceState::Running, InstanceState::Stopped] {
            let id = client.instance(state);
            let association = || {
                client.text(
                    &format!(
                        "DescribeIamInstanceProfileAssociations&Filter.1.Name=instance-id&Filter.1.Value.1={id}"
                    ),
                    "associationId",
                )
            };
            let associate =
                format!("AssociateIamInstanceProfile&InstanceId={id}&IamInstanceProfile.Name=web");
            assert_eq!(client.text(&associate, "state"), "associating");
            let first = association();
            assert!(first.starts_with("iip-assoc-"), "{first}");
            client.refuses(&[(&associate, "IncorrectState")]);
            let shown = client.ask(&format!("DescribeInstances&InstanceId.1={id}")).unwrap();
            let arn = "arn:aws:iam::000000000000:instance-profile/web";
            assert!(shown.contains(&format!("<iamInstanceProfile><arn>{arn}</arn><id>AIPA")), "{shown}");

            let db = "IamInstanceProfile.Arn=arn:aws:iam::000000000000:instance-profile/db";
            client.ask(&format!("ReplaceIamInstanceProfileAssociation&AssociationId={first}&{db}")).unwrap();
            let second = association();
            assert_ne!(first, second);
            let world = client.agent.state.read();
            let instance = world.get::<Instance>(&id).unwrap();
            assert_eq!(iam::profile_of(&world, instance).unwrap().role.as_deref(), Some("db"));

            let disassociate = |id: &str| format!("DisassociateIamInstanceProfile&AssociationId={id}");
            client.refuses(&[(&disassociate(&first), "InvalidAssociationID.NotFound")]);
            assert_eq!(client.text(&disassociate(&second), "state"), "disassociating");
            client.refuses(&[(&disassociate(&second), "InvalidAssociationID.NotFound")]);
            let shown = client.ask(&format!("DescribeInstances&InstanceId.1={id}")).unwrap();
            assert!(!shown.contains("iamInstanceProfile"), "{shown}");
        }
    }

    #[test]
    fn what_cannot_be_associated_is_refused() {
        let client = Client::new();
        client.profile("web");
        let id = client.instance(InstanceState::Running);
        let gone = client.instance(InstanceState::Terminated);
        let associate = |rest: &str| format!("AssociateIamInstanceProfile&InstanceId={id}&{rest}");
        let of =
            |id: &str| format!("AssociateIamInstanceProfile&InstanceId={id}&IamInstanceProfile.Name=web");
        client.refuses(&[
            (&associate("IamInstanceProfile.Name=db"), "InvalidParameterValue"),
            (&associate("IamInstanceProfile.Arn=web"), "InvalidParameterValue"),
            (&associate(""), "MissingParameter"),
            (
                &associate("IamInstanceProfile.Name=web&IamInstanceProfile.Arn=x"),
                "InvalidParameterCombination",
            ),
            (&of("i-00000000000000000"), "InvalidInstanceID.NotFound"),
            (&of("web"), "InvalidInstanceID.Malformed"),
            (&of(gone.as_str()), "IncorrectInstanceState"),
            (&format!("{}&DryRun=true", of(id.as_str())), "DryRunOperation"),
            ("DisassociateIamInstanceProfile", "MissingParameter"),
            (
                "ReplaceIamInstanceProfileAssociation&AssociationId=iip-assoc-1&IamInstanceProfile.Name=web",
                "InvalidAssociationID.NotFound",
            ),
            (
                "DescribeIamInstanceProfileAssociations&AssociationId.1=iip-assoc-1",
                "InvalidAssociationID.NotFound",
            ),
            (
                "DescribeIamInstanceProfileAssociations&Filter.1.Name=colour&Filter.1.Value.1=red",
                "InvalidParameterValue",
            ),
        ]);
        let error = client.ask(&associate("IamInstanceProfile.Name=db")).unwrap_err();
        let expected =
            "Value (db) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name";
        assert_eq!(error.message, expected);
        let other = client.ask_as("111111111111", &of(id.as_str())).unwrap_err();
        assert_eq!(other.code, "InvalidInstanceID.NotFound");
    }

    #[test]
    fn associations_are_found_by_their_state() {
        let client = Client::new();
        client.profile("web");
        let id = client.instance(InstanceState::Running);
        client
            .ask(&format!("AssociateIamInstanceProfile&InstanceId={id}&IamInstanceProfile.Name=web"))
            .unwrap();
        for (state, count) in [("associated", 1), ("associating", 0)] {
            let request = format!(
                "DescribeIamInstanceProfileAssociations&Filter.1.Name=state&Filter.1.Value.1={state}"
            );
            assert_eq!(client.texts(&request, "instanceId").len(), count, "{state}");
        }
        for (name, value, count) in
            [("arn", "*:instance-profile/web", 1), ("id", "AIPA*", 1), ("name", "web", 1), ("name", "db", 0)]
        {
            let request = format!(
                "DescribeInstances&Filter.1.Name=iam-instance-profile.{name}&Filter.1.Value.1={value}"
            );
            assert_eq!(
                client.texts(&request, "instanceId").iter().filter(|one| **one == id.as_str()).count(),
                count
            );
        }
    }
}
