//! DeleteVpc.

use serde::Deserialize;

use crate::actions::lookup::{dependency, find_own};
use crate::ids::VpcId;
use crate::network::furnishing::{acl_of, group_of};
use crate::network::routes::main_table;
use crate::query::{Action, ApiError, Context};
use crate::records::{
    InternetGateway, NetworkAcl, NetworkInterface, RouteTable, SecurityGroup, Subnet, Tags, Vpc,
};
use crate::state::World;

/// Deletes a VPC in which nothing is left but what it came with.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteVpc {
    vpc_id: String,
}

impl DeleteVpc {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<VpcId, ApiError> {
        let vpc = &find_own::<Vpc>(world, context, &self.vpc_id)?.id;
        let is_needed = world.all::<Subnet>().any(|subnet| subnet.vpc == *vpc)
            || world.all::<InternetGateway>().any(|gateway| gateway.vpc.as_ref() == Some(vpc))
            || world.all::<NetworkInterface>().any(|interface| interface.vpc == *vpc)
            || world.all::<RouteTable>().any(|table| table.vpc == *vpc && !table.is_main())
            || world.all::<NetworkAcl>().any(|acl| acl.vpc == *vpc && !acl.is_default)
            || world.all::<SecurityGroup>().any(|group| group.vpc == *vpc && group.name != "default");
        if is_needed { Err(dependency("vpc", vpc)) } else { Ok(vpc.clone()) }
    }
}

impl Action for DeleteVpc {
    const NAME: &'static str = "DeleteVpc";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let vpc = self.plan(draft, context)?;
            if let Some(table) = main_table(draft, &vpc).cloned() {
                draft.remove::<RouteTable>(&table.id);
                draft.remove::<Tags>(&table.id);
            }
            if let Some(acl) = acl_of(draft, &vpc).cloned() {
                draft.remove::<NetworkAcl>(&acl.id);
                draft.remove::<Tags>(&acl.id);
            }
            if let Some(group) = group_of(draft, &vpc).cloned() {
                for rule in &group.rules {
                    draft.remove::<Tags>(&rule.id);
                }
                draft.remove::<SecurityGroup>(&group.id);
                draft.remove::<Tags>(&group.id);
            }
            draft.remove::<Vpc>(&vpc);
            draft.remove::<Tags>(&vpc);
            Ok(())
        })
    }
}
