//! Logins for AlloyDB: Google's OAuth tokens, of this narrow scope only.
//!
//! They come from a file of credentials, or from where Google's own programs look for them: the file that
//! `GOOGLE_APPLICATION_CREDENTIALS` names, the one that gcloud wrote, the machine's metadata server. A token is always
//! asked for: one that a service account signs for itself is no OAuth token, and no database is documented to take it.
//!
//! Sources: <https://cloud.google.com/alloydb/docs/database-users/manage-iam-auth>,
//! <https://cloud.google.com/docs/authentication/application-default-credentials>.

mod federation;
mod key_file;
mod machine;
mod service_account;

use std::env;
use std::path::Path;

use zeroize::Zeroizing;

use self::key_file::KeyFile;
use super::Minted;
use super::oauth::{self, Token};
use crate::failure::{Cause, Failure, plain};
use crate::files;

/// What a token is for: to log in to AlloyDB, and nothing else.
const SCOPE: &str = "https://www.googleapis.com/auth/alloydb.login";

/// More than any file of credentials has, in bytes.
const MAX_FILE: usize = 64 << 10;

const VARIABLE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const GCLOUD_FILE: &str = ".config/gcloud/application_default_credentials.json";

/// Makes a login; the default chain is asked if no file is given.
///
/// # Errors
/// `credentials` failures.
pub(super) async fn mint(user: &str, credentials_file: Option<&Path>) -> Result<Minted, Failure> {
    let asked = async {
        match credentials_file {
            Some(path) => of_file(path).await,
            None => by_default_chain().await,
        }
    };
    Ok(oauth::in_time("Google", asked).await?.login(user.to_owned()))
}

async fn by_default_chain() -> Result<Token, Failure> {
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return of_file(Path::new(&path)).await;
    }
    let Some(home) = env::home_dir().filter(|home| home.is_absolute()) else {
        return machine::token(&format!("${VARIABLE} is not set, there is no home to look into")).await;
    };
    let path = home.join(GCLOUD_FILE);
    match read(&path).await {
        Ok(bytes) => of_text(&bytes, &path).await,
        Err(text) => machine::token(&format!("${VARIABLE} is not set, {} {text}", path.display())).await,
    }
}

async fn of_file(path: &Path) -> Result<Token, Failure> {
    let bytes = read(path).await.map_err(|text| unusable(path, &text))?;
    of_text(&bytes, path).await
}

async fn of_text(bytes: &[u8], path: &Path) -> Result<Token, Failure> {
    let file = KeyFile::parse(bytes).map_err(|text| unusable(path, &text))?;
    file.token(SCOPE, path).await
}

fn unusable(path: &Path, text: &str) -> Failure {
    let failure = Failure::new(Cause::CredentialsMissing, format!("{} {text}", path.display()));
    failure.with_hint(format!(
        "name a file with Google's credentials, which the daemon's user may read, as `credentials_file` or in ${VARIABLE}"
    ))
}

async fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let path = path.to_owned();
    let read = files::read_aside(move || files::read(&path, MAX_FILE)).await;
    let read = read.and_then(|read| read.map_err(|error| plain(&error)));
    read.map_err(|text| format!("cannot be read: {text}"))
}
