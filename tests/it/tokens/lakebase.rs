//! Lakebase: a token for the workspace, then one for the database, by both of the APIs.

use data_encoding::BASE64;
use serde_json::{Value, json};
use tunnelkeeper::failure::Cause;
use tunnelkeeper::secret::{Secret, SecretSource};
use tunnelkeeper::settings::plan::{CredentialsPlan, LakebaseResource};

use super::{echo, every_wrong_answer, gone, mint, silence, text, user_and_password};
use crate::support::cloud::Asked;
use crate::support::{Cloud, Reply};

const CLIENT: &str = "3b7f8b8e-0000-4000-8000-1234567890ab";
const SECRET: &str = "dose/hunter+2";
const ENDPOINT: &str = "projects/p/branches/main/endpoints/primary";

fn plan(workspace: &str, resource: LakebaseResource) -> CredentialsPlan {
    let plain = |text: &str| SecretSource::Plain(Secret::new(text.to_owned()));
    CredentialsPlan::LakebaseOauth {
        user: None,
        workspace: workspace.to_owned(),
        client_id: plain(CLIENT),
        client_secret: plain(SECRET),
        resource,
    }
}

fn instance(service: &Cloud) -> CredentialsPlan {
    plan(&service.url(), LakebaseResource::Instance("orders".to_owned()))
}

fn endpoint(service: &Cloud) -> CredentialsPlan {
    plan(&service.url(), LakebaseResource::Endpoint(ENDPOINT.to_owned()))
}

/// Both steps; `credential` answers the second.
fn workspace(credential: impl Fn(&Asked) -> Reply + Send + 'static) -> Cloud {
    Cloud::start(move |request| match request.path.as_str() {
        "/oidc/v1/token" => Reply::Json(
            200,
            json!({ "access_token": "w0rkspace", "token_type": "Bearer", "expires_in": 3600 }),
        ),
        _ => credential(request),
    })
}

fn in_an_hour() -> String {
    let hour = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    humantime::format_rfc3339_millis(hour).to_string()
}

fn assert_first_step(request: &Asked) {
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/oidc/v1/token"));
    let basic = BASE64.encode(format!("{CLIENT}:{SECRET}").as_bytes());
    assert_eq!(request.header("authorization"), format!("Basic {basic}"));
    let form: Vec<(String, String)> = request.form().into_iter().collect();
    let expected = [("grant_type", "client_credentials"), ("scope", "all-apis")];
    assert_eq!(form, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn provisioned_instances_have_their_own_api() {
    let service =
        workspace(|_| Reply::Json(200, json!({ "token": "t0ken", "expiration_time": in_an_hour() })));
    let login = user_and_password(&mint(&instance(&service)).unwrap(), 3600);
    assert_eq!(login, (CLIENT.to_owned(), "t0ken".to_owned()));
    let [first, second] = <[Asked; 2]>::try_from(service.asked()).unwrap();
    assert_first_step(&first);
    assert_eq!((second.method.as_str(), second.path.as_str()), ("POST", "/api/2.0/database/credentials"));
    assert_eq!(second.header("authorization"), "Bearer w0rkspace");
    let body = second.json();
    assert_eq!(body["instance_names"], json!(["orders"]));
    assert_eq!(body.as_object().unwrap().len(), 2);
    assert_is_uuid(body["request_id"].as_str().unwrap());
}

fn assert_is_uuid(text: &str) {
    let parts: Vec<&str> = text.split('-').collect();
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{text}");
    assert!(parts.iter().all(|part| u64::from_str_radix(part, 16).is_ok()), "{text}");
    assert!(parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']), "{text}");
}

#[test]
fn autoscaling_endpoints_have_another() {
    let service = workspace(|_| Reply::Json(200, json!({ "token": "t0ken", "expire_time": in_an_hour() })));
    let mut plan = endpoint(&service);
    let CredentialsPlan::LakebaseOauth { user, .. } = &mut plan else { unreachable!() };
    *user = Some("someone@example.com".to_owned());
    let login = user_and_password(&mint(&plan).unwrap(), 3600);
    assert_eq!(login, ("someone@example.com".to_owned(), "t0ken".to_owned()));
    let [first, second] = <[Asked; 2]>::try_from(service.asked()).unwrap();
    assert_first_step(&first);
    assert_eq!((second.method.as_str(), second.path.as_str()), ("POST", "/api/2.0/postgres/credentials"));
    assert_eq!(second.header("authorization"), "Bearer w0rkspace");
    assert_eq!(second.json(), json!({ "endpoint": ENDPOINT, "ttl": "3600s" }));
}

#[test]
fn a_refused_client_is_told_from_a_refused_database() {
    let denied = Cloud::saying(
        401,
        json!({ "error": "invalid_client", "error_description": "Client authentication failed" }),
    );
    let failure = mint(&instance(&denied)).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsDenied);
    assert!(failure.detail().contains("invalid_client: Client authentication failed"), "{failure}");
    assert!(failure.hint().contains("`client_id` and `client_secret`"), "{}", failure.hint());

    let unknown = json!({ "error_code": "NOT_FOUND", "message": "Database instance 'orders' not found." });
    let forbidden = json!({ "error_code": "PERMISSION_DENIED", "message": "no right" });
    for (plan, key) in [(instance as fn(&Cloud) -> _, "`instance`"), (endpoint, "`endpoint`")] {
        for (status, body, detail) in [
            (404, unknown.clone(), "Database instance 'orders' not found"),
            (403, forbidden.clone(), "no right"),
        ] {
            let service = workspace(move |_| Reply::Json(status, body.clone()));
            let failure = mint(&plan(&service)).unwrap_err();
            assert_eq!(failure.cause, Cause::CredentialsDenied, "{failure}");
            assert!(failure.detail().contains(detail), "{failure}");
            assert!(failure.hint().contains(key), "{}", failure.hint());
        }
    }
}

#[test]
fn a_credential_without_token_or_end_is_none() {
    for body in [
        json!({}),
        json!({ "token": "t0ken" }),
        json!({ "token": "t0ken", "expire_time": "soon" }),
        Value::Null,
    ] {
        let service = workspace(move |_| Reply::Json(200, body.clone()));
        let failure = mint(&endpoint(&service)).unwrap_err();
        assert_eq!(failure.cause, Cause::CredentialsInvalidAnswer, "{failure}");
        assert!(!text(&failure).contains("t0ken"), "{failure}");
    }
}

#[test]
fn what_is_no_workspace_is_named() {
    every_wrong_answer(instance);
    gone(endpoint);
    silence(instance);
}

#[test]
fn no_secret_is_repeated() {
    let basic = BASE64.encode(format!("{CLIENT}:{SECRET}").as_bytes());
    for status in [400, 401, 403, 404, 429, 500] {
        let service = echo(status);
        let failure = mint(&instance(&service)).unwrap_err();
        assert!(service.only().header("authorization").contains(&basic));
        for secret in [SECRET, &basic] {
            assert!(!text(&failure).contains(secret), "{failure}");
        }
        assert!(failure.detail().contains("(hidden)"), "{failure}");
        let service = workspace(move |request| {
            Reply::Json(status, json!({ "error_code": "X", "message": format!("{:?}", request.headers) }))
        });
        let failure = mint(&instance(&service)).unwrap_err();
        assert!(!text(&failure).contains("w0rkspace"), "{failure}");
        assert!(failure.detail().contains("Bearer (hidden)"), "{failure}");
    }
}

#[test]
fn no_secret_goes_through_a_network_in_clear() {
    let service = workspace(|_| Reply::Silence);
    let somewhere = service.url().replace("127.0.0.1", "127.0.0.1.example");
    let failure = mint(&plan(&somewhere, LakebaseResource::Instance("orders".to_owned()))).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsMissing);
    assert!(failure.hint().contains("`workspace` begin with https://"), "{}", failure.hint());
}

#[test]
fn a_secret_that_is_not_there_is_named() {
    let service = workspace(|_| Reply::Silence);
    let mut plan = instance(&service);
    let CredentialsPlan::LakebaseOauth { client_secret, .. } = &mut plan else { unreachable!() };
    *client_secret = SecretSource::File("/nonexistent/secret".into());
    let failure = mint(&plan).unwrap_err();
    assert_eq!(failure.cause, Cause::CredentialsMissing);
    assert!(
        failure.detail().starts_with("`client_secret`: file /nonexistent/secret cannot be read"),
        "{failure}"
    );
    assert!(service.asked().is_empty());
}
