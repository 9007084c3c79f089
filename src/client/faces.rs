//! The two faces of a call: it is written once, as an `async` body, and listed in [`calls!`].

/// Declares calls of a client. Each becomes a method of [`Client`](super::Client), which blocks
/// until the body is done, and one of [`AsyncClient`](super::AsyncClient), whose caller awaits it.
///
/// In the body the first name is the client. A call whose answer reads more later has one type of
/// answer for blocking and one for awaiting, written `-> Blocking | Awaited`.
macro_rules! calls {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($client:ident $(, $arg:ident: $type:ty)* $(,)?)
        -> $answer:ty $(| $awaited:ty)? $body:block
    )+) => {
        impl Client {
            $(
                $(#[$meta])*
                pub fn $name(&self $(, $arg: $type)*) -> Result<$answer, ClientError> {
                    let $client = self;
                    crate::client::call::wait(async move { $body })
                }
            )+
        }

        #[cfg(feature = "async")]
        impl crate::client::AsyncClient {
            $(
                #[doc = concat!("Does what [`Client::", stringify!($name), "`] does.")]
                ///
                /// # Errors
                /// Those of the blocking call.
                pub async fn $name(
                    &self
                    $(, $arg: $type)*
                ) -> Result<crate::client::faces::awaited!($answer $(| $awaited)?), ClientError> {
                    let $client = self.client();
                    let answer: Result<$answer, ClientError> = async move { $body }.await;
                    answer.map(From::from)
                }
            )+
        }
    };
}

/// The type of a call's answer to whoever awaits it.
#[cfg(feature = "async")]
macro_rules! awaited {
    ($answer:ty) => {
        $answer
    };
    ($answer:ty | $awaited:ty) => {
        $awaited
    };
}

#[cfg(feature = "async")]
pub(super) use awaited;
pub(super) use calls;
