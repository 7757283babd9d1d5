//! Key pairs. Only their public halves are kept: a private one is in the answer to CreateKeyPair and nowhere else.

mod create_key_pair;
mod delete_key_pair;
mod describe_key_pairs;
mod import_key_pair;

use crate::ids::KeyPairId;
use crate::keys::Public;
use crate::query::dispatch::Registry;
use crate::query::tags::{TagSpecification, specified};
use crate::query::{ApiError, Context};
use crate::records::KeyPair;
use crate::state::World;

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_key_pair::CreateKeyPair>();
    registry.add::<delete_key_pair::DeleteKeyPair>();
    registry.add::<describe_key_pairs::DescribeKeyPairs>();
    registry.add::<import_key_pair::ImportKeyPair>();
}

/// Refuses a name that a new pair cannot have.
fn check_name(world: &World, name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::missing("KeyName"));
    }
    let is_printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if name.len() > 255 || !is_printable || name.trim() != name {
        let reason = "It must have at most 255 printable ASCII characters, and no space at its ends.";
        return Err(ApiError::invalid(name, "KeyName", reason));
    }
    if world.all::<KeyPair>().any(|pair| pair.name == name) {
        let message = format!("The keypair '{name}' already exists.");
        return Err(ApiError::new("InvalidKeyPair.Duplicate", message));
    }
    Ok(())
}

/// Records a new pair with its tags.
fn keep(
    context: Context<'_>,
    name: &str,
    public: Public,
    tags: &[TagSpecification],
) -> Result<KeyPair, ApiError> {
    let tags = specified(tags, &["key-pair"])?.remove("key-pair").unwrap_or_default();
    let pair = KeyPair {
        id: KeyPairId::random(),
        name: name.to_owned(),
        key_type: public.key_type.name().to_owned(),
        fingerprint: public.fingerprint,
        public_key: public.line,
        created: jiff::Timestamp::now(),
    };
    context.agent.state.change(|draft| {
        check_name(draft, name)?;
        draft.put(pair.clone());
        draft.tag(&pair.id, tags);
        Ok::<_, ApiError>(())
    })?;
    Ok(pair)
}
