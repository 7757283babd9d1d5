//! The agent's own authority.

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use innkeeper_identity::Kind;

use crate::cli::answer::{list, text};
use crate::cli::client::{Client, Parameters};
use crate::cli::global::{Global, print};

/// What to do with the agent's authority.
#[derive(Debug, clap::Subcommand)]
pub enum Identity {
    /// Print a certificate, in PEM
    Certificate {
        /// What is to be verified: an identity document's signature, pkcs7 or rsa2048, or the API itself (ca)
        #[arg(long, value_parser = PossibleValuesParser::new(Kind::ALL.map(Kind::name)), default_value = "rsa2048")]
        kind: String,
    },
}

impl Identity {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let Self::Certificate { kind } = self;
        print(&certificate(&global.client()?, &kind)?)?;
        Ok(0)
    }
}

fn certificate(client: &Client, kind: &str) -> anyhow::Result<String> {
    let answer = client.call("InnkeeperDescribeIdentity", Parameters::default())?;
    let found = list(&answer, "certificateSet").iter().find(|each| text(each, "kind") == kind);
    let found = found.with_context(|| format!("the agent has no certificate for {kind}"))?;
    Ok(format!("{}\n", text(found, "certificate").trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::tests::serve;

    #[test]
    fn a_certificate_is_printed_as_it_is() {
        let item = |kind: &str| {
            let certificate = format!("-----BEGIN CERTIFICATE-----\n{kind}\n-----END CERTIFICATE-----\n");
            (format!("<item><kind>{kind}</kind><certificate>{certificate}</certificate></item>"), certificate)
        };
        let (pkcs7, rsa2048) = (item("pkcs7"), item("rsa2048"));
        let answer = format!("<R><certificateSet>{}{}</certificateSet></R>", pkcs7.0, rsa2048.0);
        let (client, _) = serve(vec![(200, answer.clone()), (200, answer)]);
        assert_eq!(certificate(&client, "rsa2048").unwrap(), rsa2048.1);
        let error = certificate(&client, "ca").unwrap_err().to_string();
        assert_eq!(error, "the agent has no certificate for ca");
    }
}
