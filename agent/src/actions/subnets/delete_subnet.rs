//! DeleteSubnet.

use serde::Deserialize;

use crate::actions::lookup::{dependency, find_own};
use crate::ids::SubnetId;
use crate::query::{Action, ApiError, Context};
use crate::records::{NetworkInterface, RouteTable, Subnet, Tags};
use crate::state::World;

/// Deletes a subnet without interfaces.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteSubnet {
    subnet_id: String,
}

impl DeleteSubnet {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<SubnetId, ApiError> {
        let subnet = &find_own::<Subnet>(world, context, &self.subnet_id)?.id;
        match world.all::<NetworkInterface>().any(|interface| interface.subnet == *subnet) {
            true => Err(dependency("subnet", subnet)),
            false => Ok(subnet.clone()),
        }
    }
}

impl Action for DeleteSubnet {
    const NAME: &'static str = "DeleteSubnet";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let subnet = self.plan(draft, context)?;
            let uses = |table: &RouteTable| {
                table.associations.iter().any(|one| one.subnet.as_ref() == Some(&subnet))
            };
            let table = draft.all::<RouteTable>().find(|table| uses(table)).map(|table| table.id.clone());
            if let Some(table) = table {
                draft.update::<RouteTable>(&table, |table| {
                    table.associations.retain(|one| one.subnet.as_ref() != Some(&subnet));
                });
            }
            draft.remove::<Subnet>(&subnet);
            draft.remove::<Tags>(&subnet);
            Ok(())
        })
    }
}
