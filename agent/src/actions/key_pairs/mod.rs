//! Key pairs. Only their public halves are kept: a private one is in the answer to CreateKeyPair and nowhere else.

mod create_key_pair;
mod delete_key_pair;
mod describe_key_pairs;
mod import_key_pair;

use crate::actions::lookup::key_pairs;
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
fn check_name(world: &World, context: Context<'_>, name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::missing("KeyName"));
    }
    let is_printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if name.len() > 255 || !is_printable || name.trim() != name {
        let reason = "It must have at most 255 printable ASCII characters, and no space at its ends.";
        return Err(ApiError::invalid(name, "KeyName", reason));
    }
    if key_pairs(world, context).any(|pair| pair.name == name) {
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
        owner: context.caller.account.clone(),
        name: name.to_owned(),
        key_type: public.key_type.name().to_owned(),
        fingerprint: public.fingerprint,
        public_key: public.line,
        created: jiff::Timestamp::now(),
    };
    context.agent.state.change(|draft| {
        check_name(draft, context, name)?;
        draft.put(pair.clone());
        draft.tag(&pair.id, tags);
        Ok::<_, ApiError>(())
    })?;
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use crate::actions::testing::Client;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDBbLXHmMe3Dr2sX2T2WT9v+SsS7bREjryOgujhBWRF7 me";

    fn import(name: &str) -> String {
        use base64::Engine as _;
        let material = base64::engine::general_purpose::URL_SAFE.encode(KEY);
        assert!(!material.contains(['-', '_', '+']));
        format!("ImportKeyPair&KeyName={name}&PublicKeyMaterial={}", material.replace('=', "%3D"))
    }

    #[test]
    fn a_private_key_is_handed_out_and_not_kept() {
        let client = Client::new();
        let material = client.text("CreateKeyPair&KeyName=mine&KeyType=ed25519", "keyMaterial");
        assert!(material.contains("OPENSSH PRIVATE KEY"), "{material}");
        let shown = client.ask("DescribeKeyPairs&IncludePublicKey=true").unwrap();
        assert!(shown.contains("<publicKey>ssh-ed25519 ") && !shown.contains("PRIVATE"), "{shown}");
        assert!(!client.ask("DescribeKeyPairs").unwrap().contains("publicKey"));
        client.refuses(&[
            ("CreateKeyPair&KeyName=mine", "InvalidKeyPair.Duplicate"),
            (&import("mine"), "InvalidKeyPair.Duplicate"),
            ("CreateKeyPair&KeyName=other&KeyType=dsa", "InvalidParameterValue"),
            ("CreateKeyPair&KeyName=other&KeyFormat=ppk", "Unsupported"),
            ("CreateKeyPair&KeyName=other&KeyFormat=x", "InvalidParameterValue"),
            ("CreateKeyPair&KeyName=", "MissingParameter"),
            ("CreateKeyPair", "MissingParameter"),
            ("CreateKeyPair&KeyName=%C3%A4", "InvalidParameterValue"),
            ("ImportKeyPair&KeyName=other&PublicKeyMaterial=%25", "InvalidKey.Format"),
            ("ImportKeyPair&KeyName=other&PublicKeyMaterial=aGVsbG8%3D", "InvalidKey.Format"),
            ("DescribeKeyPairs&KeyName.1=other", "InvalidKeyPair.NotFound"),
            ("DescribeKeyPairs&KeyPairId.1=key-12345678", "InvalidKeyPair.NotFound"),
            ("DeleteKeyPair", "MissingParameter"),
        ]);
    }

    #[test]
    fn a_pair_is_found_by_name_id_and_fingerprint_and_deleted_as_often_as_one_likes() {
        let client = Client::new();
        let id = client.text(&import("mine"), "keyPairId");
        client.ask(&import("yours")).unwrap();
        for (rest, count) in [
            ("&KeyName.1=mine".to_owned(), 1),
            (format!("&KeyPairId.1={id}"), 1),
            ("&Filter.1.Name=key-name&Filter.1.Value.1=*i*".into(), 1),
            ("&Filter.1.Name=fingerprint&Filter.1.Value.1=%2BDRq*".into(), 2),
        ] {
            let found = client.texts(&format!("DescribeKeyPairs{rest}"), "keyName");
            assert_eq!(found.len(), count, "{rest}");
        }
        for _ in 0..2 {
            client.ask("DeleteKeyPair&KeyName=mine").unwrap();
        }
        assert_eq!(client.texts("DescribeKeyPairs", "keyName"), ["yours"]);
    }

    #[test]
    fn an_account_has_its_own_pairs_only() {
        let client = Client::new();
        let id = client.text(&import("mine"), "keyPairId");
        let code = |request: &str| client.ask_as("111111111111", request).map_err(|error| error.code);
        let tag = format!("CreateTags&ResourceId.1={id}&Tag.1.Key=a&Tag.1.Value=b");
        for request in
            ["DescribeKeyPairs&KeyName.1=mine", &format!("DescribeKeyPairs&KeyPairId.1={id}"), &tag]
        {
            assert_eq!(code(request), Err("InvalidKeyPair.NotFound"), "{request}");
        }
        for request in
            ["DescribeKeyPairs", "DeleteKeyPair&KeyName=mine", &format!("DeleteKeyPair&KeyPairId={id}")]
        {
            assert!(!code(request).unwrap().contains(&id), "{request}");
        }
        code(&import("mine")).unwrap();
        code("DeleteKeyPair&KeyName=mine").unwrap();
        assert_eq!(client.texts("DescribeKeyPairs", "keyPairId"), [id]);
    }
}
