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

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::data_plane::peer::Peer;
use crate::identity::Identity;
use crate::records::Secret;
use crate::state::State;

use answer::{Answer, Content, Refusal, Request};
use signatures::Signatures;
use token::Tokens;
use tree::{Signed, View};

/// How many signatures are made at a time, so that the threads that may block are there for others.
const SIGNERS: usize = 2;

/// The metadata service of all VPCs.
pub struct Metadata {
    state: Arc<State>,
    region: String,
    signatures: Signatures,
    /// Signatures that are made at a time.
    signers: Semaphore,
    /// Requests of an interface in a second.
    rate: Option<u32>,
    limits: serve::Limits,
}

impl Metadata {
    /// One over these records. An interface may ask `rate` times in a second.
    pub fn new(state: Arc<State>, region: String, identity: Arc<Identity>, rate: Option<u32>) -> Self {
        let signatures = Signatures::new(identity);
        let signers = Semaphore::new(SIGNERS);
        Self { state, region, signatures, signers, rate, limits: serve::Limits::default() }
    }

    /// Signs a document, where that may take a while.
    async fn sign(self: &Arc<Self>, kind: Signed, document: String) -> Result<Content, Refusal> {
        if let Some(known) = self.signatures.known(kind, &document) {
            return Ok(Content::Text(known));
        }
        let Ok(_turn) = self.signers.acquire().await else { return Err(Refusal::Unavailable) };
        let metadata = self.clone();
        let signed = tokio::task::spawn_blocking(move || metadata.signatures.sign(kind, &document)).await;
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
    fn answer(&self, peer: &Peer, request: Request<'_>) -> Answer {
        let world = self.state.read();
        let (Some(instance), Some(secret)) = (peer.instance(&world), world.get::<Secret>(Secret::THIS))
        else {
            return Refusal::NotFound.into();
        };
        let view = View { world: &world, instance, region: &self.region, now: Timestamp::now() };
        answer::answer(view, &Tokens::new(secret), request)
    }
}
