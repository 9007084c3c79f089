//! The service Auth of etcd's interface: there are no users and no roles, and authentication is
//! off.
//!
//! What etcd answers where there are none is answered; what would make some says that it cannot.

use tonic::{Request, Response, Status};

use super::super::interface::etcd::etcdserverpb::auth_server::Auth;
use super::super::interface::etcd::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse,
};
use super::errors::EtcdError;
use super::{Answer, EtcdServices, not_yet};

/// What is said of everything that would make a user or a role.
fn no_users() -> Status {
    not_yet("users and roles: keep its port private")
}

/// Refuses a name that is none.
fn check_name(name: &str, empty: EtcdError) -> Result<(), Status> {
    if name.is_empty() { Err(empty.into()) } else { Ok(()) }
}

#[tonic::async_trait]
impl Auth for EtcdServices {
    async fn auth_enable(&self, _: Request<AuthEnableRequest>) -> Answer<AuthEnableResponse> {
        Err(EtcdError::RootUserMissing.into())
    }

    async fn auth_disable(&self, _: Request<AuthDisableRequest>) -> Answer<AuthDisableResponse> {
        Ok(Response::new(AuthDisableResponse { header: Some(self.headers().now()) }))
    }

    async fn auth_status(&self, _: Request<AuthStatusRequest>) -> Answer<AuthStatusResponse> {
        let header = Some(self.headers().now());
        Ok(Response::new(AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
    }

    async fn authenticate(&self, _: Request<AuthenticateRequest>) -> Answer<AuthenticateResponse> {
        Err(EtcdError::AuthNotEnabled.into())
    }

    async fn user_add(&self, request: Request<AuthUserAddRequest>) -> Answer<AuthUserAddResponse> {
        check_name(&request.get_ref().name, EtcdError::UserEmpty)?;
        Err(no_users())
    }

    async fn user_get(&self, _: Request<AuthUserGetRequest>) -> Answer<AuthUserGetResponse> {
        Err(EtcdError::UserNotFound.into())
    }

    async fn user_list(&self, _: Request<AuthUserListRequest>) -> Answer<AuthUserListResponse> {
        Ok(Response::new(AuthUserListResponse {
            header: Some(self.headers().now()),
            users: Vec::new(),
        }))
    }

    async fn user_delete(
        &self,
        _: Request<AuthUserDeleteRequest>,
    ) -> Answer<AuthUserDeleteResponse> {
        Err(EtcdError::UserNotFound.into())
    }

    async fn user_change_password(
        &self,
        _: Request<AuthUserChangePasswordRequest>,
    ) -> Answer<AuthUserChangePasswordResponse> {
        Err(EtcdError::UserNotFound.into())
    }

    async fn user_grant_role(
        &self,
        _: Request<AuthUserGrantRoleRequest>,
    ) -> Answer<AuthUserGrantRoleResponse> {
        Err(EtcdError::UserNotFound.into())
    }

    async fn user_revoke_role(
        &self,
        _: Request<AuthUserRevokeRoleRequest>,
    ) -> Answer<AuthUserRevokeRoleResponse> {
        Err(EtcdError::UserNotFound.into())
    }

    async fn role_add(&self, request: Request<AuthRoleAddRequest>) -> Answer<AuthRoleAddResponse> {
        check_name(&request.get_ref().name, EtcdError::RoleEmpty)?;
        Err(no_users())
    }

    async fn role_get(&self, _: Request<AuthRoleGetRequest>) -> Answer<AuthRoleGetResponse> {
        Err(EtcdError::RoleNotFound.into())
    }

    async fn role_list(&self, _: Request<AuthRoleListRequest>) -> Answer<AuthRoleListResponse> {
        Ok(Response::new(AuthRoleListResponse {
            header: Some(self.headers().now()),
            roles: Vec::new(),
        }))
    }

    async fn role_delete(
        &self,
        _: Request<AuthRoleDeleteRequest>,
    ) -> Answer<AuthRoleDeleteResponse> {
        Err(EtcdError::RoleNotFound.into())
    }

    async fn role_grant_permission(
        &self,
        _: Request<AuthRoleGrantPermissionRequest>,
    ) -> Answer<AuthRoleGrantPermissionResponse> {
        Err(EtcdError::RoleNotFound.into())
    }

    async fn role_revoke_permission(
        &self,
        _: Request<AuthRoleRevokePermissionRequest>,
    ) -> Answer<AuthRoleRevokePermissionResponse> {
        Err(EtcdError::RoleNotFound.into())
    }
}
