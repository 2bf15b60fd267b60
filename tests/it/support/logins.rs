//! One temporary login, as the probe asks for its first.

use tunnelkeeper::credentials::{Asked, Logins, Minted};
use tunnelkeeper::failure::Failure;
use tunnelkeeper::ids::Target;
use tunnelkeeper::settings::plan::LoginPlan;

pub async fn mint(plan: &LoginPlan, target: &Target) -> Result<Minted, Failure> {
    let Asked { login, mint } = Logins::new(plan.clone(), target.clone()).get().await;
    let expires = mint.expect("temporary logins are minted")?;
    Ok(Minted { login: login.unwrap(), expires })
}
