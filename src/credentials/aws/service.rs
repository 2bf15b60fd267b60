//! Asks a service of AWS a signed question.

use reqwest::Url;

use super::keys;
use super::refusal::{Circumstances, Refusal};
use super::signature::{Scope, sign_post};
use crate::clock;
use crate::credentials::{Minted, web};
use crate::failure::{Cause, Failure};
use crate::settings::plan::AwsKeysPlan;

/// A service, and how it says no.
pub(super) struct Service {
    /// Its name in addresses and signatures.
    pub name: &'static str,
    /// AWS's variable for another address of it (AWS SDKs and Tools Reference Guide, "Service-specific endpoints").
    pub variable: &'static str,
    /// Reads a refusal.
    pub refusal: fn(&str) -> Option<Refusal>,
    /// What to do where it does not know what was asked for.
    pub unknown_hint: &'static str,
}

/// Who asks, and where.
pub(in crate::credentials) struct Asker<'a> {
    /// The service's region.
    pub region: &'a str,
    /// Who signs.
    pub keys: &'a AwsKeysPlan,
    /// Asked instead of the region's own endpoint.
    pub endpoint_url: Option<&'a str>,
}

impl Asker<'_> {
    /// Asks for a login, which `read` finds in the answer.
    ///
    /// # Errors
    /// `credentials` failures of any kind.
    pub(super) async fn ask(
        &self,
        service: &Service,
        headers: &[(&str, &str)],
        question: String,
        read: fn(&str) -> Option<Minted>,
    ) -> Result<Minted, Failure> {
        let url = self.address(service, |variable| std::env::var(variable).ok())?;
        let keys = Box::pin(keys::fetch(self.keys, self.region)).await?;
        let scope =
            Scope { keys: &keys, service: service.name, region: self.region, time: clock::now().wall };
        let signed = sign_post(&scope, url.as_str(), headers, question.as_bytes())?;
        let signed = signed.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let headers: Vec<_> = headers.iter().copied().chain(signed).collect();
        let answer = Box::pin(web::post(url.as_str(), &headers, question.into_bytes())).await?;

        let by = format!("{} ({})", service.name, url.host_str().unwrap_or_default());
        let text = std::str::from_utf8(&answer.body).unwrap_or_default();
        if answer.status == 200 {
            let invalid = || format!("{by} answered, but not with a login");
            return read(text).ok_or_else(|| Failure::new(Cause::CredentialsInvalidAnswer, invalid()));
        }
        let seen = Circumstances {
            by: &by,
            status: answer.status,
            clocks: (clock::now().wall, answer.date),
            unknown_hint: service.unknown_hint,
        };
        Err(match (service.refusal)(text) {
            Some(refusal) => refusal.judge(&seen),
            None => Failure::new(
                Cause::CredentialsInvalidAnswer,
                format!("{by} answered with status {}, and with nothing that AWS would say", answer.status),
            ),
        })
    }

    /// The plan's, else AWS's variables', else the region's own endpoint (AWS General Reference, "Service endpoints").
    ///
    /// # Errors
    /// `missing`, with the name of the key or variable that has no such address in it.
    fn address(&self, service: &Service, variable: impl Fn(&str) -> Option<String>) -> Result<Url, Failure> {
        let set = |name| variable(name).filter(|address| !address.is_empty()).map(|address| (name, address));
        let domain = if self.region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let (place, address) = self
            .endpoint_url
            .map(|address| ("endpoint_url", address.to_owned()))
            .or_else(|| set(service.variable))
            .or_else(|| set("AWS_ENDPOINT_URL"))
            .unwrap_or_else(|| ("region", format!("https://{}.{}.{domain}", service.name, self.region)));
        web::address(&address).map_err(|found| {
            Failure::new(Cause::CredentialsMissing, format!("`{place}`: {}", found.detail()))
                .with_hint(found.hint())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_plans_then_the_environments_then_the_regions() {
        let keys = AwsKeysPlan::Chain { profile: None };
        let service = Service {
            name: "redshift",
            variable: "AWS_ENDPOINT_URL_REDSHIFT",
            refusal: |_| None,
            unknown_hint: "",
        };
        let address = |region, endpoint_url, variables: &[(&str, &str)]| {
            let asker = Asker { region, keys: &keys, endpoint_url };
            asker.address(&service, |name| {
                variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let shown = address;
        let address = |region, url, variables: &[_]| {
            shown(region, url, variables).unwrap().origin().ascii_serialization()
        };
        assert_eq!(address("eu-west-1", None, &[]), "https://redshift.eu-west-1.amazonaws.com");
        assert_eq!(address("cn-north-1", None, &[]), "https://redshift.cn-north-1.amazonaws.com.cn");
        let both = [("AWS_ENDPOINT_URL_REDSHIFT", "https://one"), ("AWS_ENDPOINT_URL", "https://all")];
        assert_eq!(address("eu-west-1", Some("https://plan"), &both), "https://plan");
        assert_eq!(address("eu-west-1", None, &both), "https://one");
        assert_eq!(address("eu-west-1", None, &both[1..]), "https://all");
        let empty = [("AWS_ENDPOINT_URL", "")];
        assert_eq!(address("eu-west-1", None, &empty), "https://redshift.eu-west-1.amazonaws.com");
        let failure = shown("eu-west-1", None, &[("AWS_ENDPOINT_URL", "https://u:hunter2@all")]).unwrap_err();
        assert_eq!(failure.cause, Cause::CredentialsMissing);
        assert!(failure.detail().starts_with("`AWS_ENDPOINT_URL`: the address"), "{failure}");
        assert!(
            !failure.detail().contains("hunter2") && failure.hint().contains("https://HOST"),
            "{failure}"
        );
    }
}
