//! Linux's error numbers, which every part of the kernel answers by.
#![forbid(unsafe_code)]
#![no_std]

macro_rules! errors {
    ($($name:ident = $value:literal,)*) => {
        /// Error numbers, the same on all of Linux's newer architectures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Errno { $($name = $value,)* }
    };
}

errors! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EBADF = 9, EAGAIN = 11, ENOMEM = 12, EACCES = 13,
    EFAULT = 14, EEXIST = 17, EXDEV = 18, ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22,
    EMFILE = 24, ENOTTY = 25, EFBIG = 27, ENOSPC = 28, ESPIPE = 29, EROFS = 30, EPIPE = 32,
    ERANGE = 34, ENAMETOOLONG = 36, ENOSYS = 38, ENOTEMPTY = 39, ELOOP = 40, ENOTSOCK = 88,
    EDESTADDRREQ = 89, EMSGSIZE = 90, ENOPROTOOPT = 92, EPROTONOSUPPORT = 93, EOPNOTSUPP = 95,
    EAFNOSUPPORT = 97, EADDRINUSE = 98, EADDRNOTAVAIL = 99, ENETUNREACH = 101, ECONNRESET = 104,
    ENOBUFS = 105, EISCONN = 106, ENOTCONN = 107, ETIMEDOUT = 110, ECONNREFUSED = 111,
    EINPROGRESS = 115,
}

/// Ends a call with an error, or the start with a reason, where a condition holds.
#[macro_export]
macro_rules! refuse {
    ($condition:expr, $error:ident) => {
        if $condition {
            return Err($crate::Errno::$error);
        }
    };
    ($condition:expr, $reason:literal) => {
        if $condition {
            return Err($reason.into());
        }
    };
}
