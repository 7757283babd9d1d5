//! The instance metadata service: what an instance is told about itself at 169.254.169.254, and what its owner has given
//! to it as user data.
//!
//! - [`tree`] is what there is to read, made from the records at the moment of the request, so that it is never stale.
//! - [`token`] are the sessions of IMDSv2, and [`answer`] is who may ask for what. Both are pure, as the tree is.
//! - [`signatures`] keeps what the agent's authority has signed.
//! - [`serve`] is HTTP: connections, and what they may cost.
//!
//! There is a socket in each VPC's namespace. Nobody there can send from an address that is not his (see
//! `innkeeper-network`), so that the address says which instance is asking, and no request names one.

mod answer;
mod serve;
mod signatures;
mod token;
mod tree;

use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::data_plane::plan::used;
use crate::identity::Identity;
use crate::ids::{NetworkInterfaceId, VpcId};
use crate::records::{Instance, NetworkInterface, Secret};
use crate::state::{State, World};

use answer::{Answer, Content, Refusal, Request};
use signatures::Signatures;
use token::Tokens;
use tree::{Signed, View};

/// The metadata service of all VPCs.
pub struct Metadata {
    state: Arc<State>,
    region: String,
    signatures: Signatures,
    limits: serve::Limits,
}

impl Metadata {
    /// One over these records.
    pub fn new(state: Arc<State>, region: String, identity: Arc<Identity>) -> Self {
        let signatures = Signatures::new(identity);
        Self { state, region, signatures, limits: serve::Limits::default() }
    }

    /// Signs a document, where that may take a while.
    async fn sign(self: Arc<Self>, kind: Signed, document: String) -> Result<Content, Refusal> {
        if let Some(known) = self.signatures.known(kind, &document) {
            return Ok(Content::Text(known));
        }
        let signed = tokio::task::spawn_blocking(move || self.signatures.sign(kind, &document)).await;
        match signed {
            Ok(Ok(signature)) => return Ok(Content::Text(signature)),
            Ok(Err(error)) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "an identity document was not signed"
            ),
            Err(error) => tracing::error!(%error, "an identity document was not signed"),
        }
        Err(Refusal::Unavailable)
    }

    /// Answers a request that came by an interface.
    fn answer(&self, asker: &Asker, request: Request<'_>) -> Answer {
        let world = self.state.read();
        let (Some(instance), Some(secret)) = (asker.instance(&world), world.get::<Secret>(Secret::THIS))
        else {
            return Refusal::NotFound.into();
        };
        let view = View { world: &world, instance, region: &self.region, now: Timestamp::now() };
        answer::answer(view, &Tokens::new(secret), request)
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asker {
    interface: NetworkInterfaceId,
    address: Ipv4Addr,
}

impl Asker {
    /// Whoever has an address in a VPC.
    fn find(world: &World, vpc: &VpcId, address: Ipv4Addr) -> Option<Self> {
        let has_it = |one: &&NetworkInterface| one.addresses().any(|own| own.address == address);
        let interface = used(world, vpc).find(has_it)?.id.clone();
        Some(Self { interface, address })
    }

    /// Its instance, as long as it still has that address: a connection may outlive that.
    fn instance<'w>(&self, world: &'w World) -> Option<&'w Instance> {
        let interface = world.get::<NetworkInterface>(&self.interface)?;
        let has_it = interface.addresses().any(|own| own.address == self.address);
        let instance = world.get::<Instance>(interface.instance()?)?;
        (has_it && instance.lifecycle.state.holds_capacity()).then_some(instance)
    }
}
