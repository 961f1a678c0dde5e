/* Preloaded into a sender: calls of the network fail as its control block says (syscalls.py).
 *
 * Only TCP is touched; pipes and the sockets of the workers are what they were. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX_ADDRESSES = 8 };

/* Every n-th call (0: none) fails with `error`, or, with 0, moves one byte. */
struct call {
    int32_t every, error, calls, hits;
};

struct control {
    struct call send, receive, connect, wait;
    int32_t resolve_error, resolve_ms, resolving, resolved;
    int32_t addresses;
    uint32_t address[MAX_ADDRESSES]; /* of every name, in network order */
};

static struct control *control;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("MPP_SYSCALLS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found != MAP_FAILED)
        control = found;
}

static void *next(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

static int is_tcp(int fd)
{
    int domain = 0;
    socklen_t size = sizeof domain;
    int saved = errno;
    int failed = getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    errno = saved;
    return !failed && (domain == AF_INET || domain == AF_INET6);
}

static int hit(struct call *call)
{
    int32_t number = __atomic_add_fetch(&call->calls, 1, __ATOMIC_RELAXED);
    int32_t every = __atomic_load_n(&call->every, __ATOMIC_RELAXED);
    if (every == 0 || number % every)
        return 0;
    __atomic_add_fetch(&call->hits, 1, __ATOMIC_RELAXED);
    return 1;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, const struct msghdr *, int);
    if (!real)
        *(void **)&real = next("sendmsg");
    if (!control || !is_tcp(fd) || !hit(&control->send))
        return real(fd, message, flags);
    if (control->send.error) {
        errno = control->send.error;
        return -1;
    }
    struct iovec *first = message->msg_iov;
    size_t count = message->msg_iovlen;
    while (count > 1 && first->iov_len == 0)
        first++, count--;
    struct iovec one = {first->iov_base, first->iov_len ? 1 : 0};
    struct msghdr less = *message;
    less.msg_iov = &one;
    less.msg_iovlen = 1;
    return real(fd, &less, flags);
}

ssize_t recv(int fd, void *data, size_t size, int flags)
{
    static ssize_t (*real)(int, void *, size_t, int);
    if (!real)
        *(void **)&real = next("recv");
    if (!control || !is_tcp(fd) || !hit(&control->receive))
        return real(fd, data, size, flags);
    if (control->receive.error) {
        errno = control->receive.error;
        return -1;
    }
    return real(fd, data, size ? 1 : 0, flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    static int (*real)(int, const struct sockaddr *, socklen_t);
    if (!real)
        *(void **)&real = next("connect");
    if (!control || !is_tcp(fd) || !hit(&control->connect))
        return real(fd, address, size);
    errno = control->connect.error;
    return -1;
}

/* The loop sleeps in epoll_pwait2, which the C library has no name for where it is older. */
long syscall(long number, ...)
{
    static long (*real)(long, ...);
    va_list list;
    long a[6];
    if (!real)
        *(void **)&real = next("syscall");
    va_start(list, number);
    for (int place = 0; place < 6; place++)
        a[place] = va_arg(list, long);
    va_end(list);
    if (control && number == SYS_epoll_pwait2 && hit(&control->wait)) {
        errno = control->wait.error;
        return -1;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found)
{
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (!real)
        *(void **)&real = next("getaddrinfo");
    if (!control)
        return real(name, service, hints, found);
    __atomic_add_fetch(&control->resolving, 1, __ATOMIC_RELAXED);
    usleep((useconds_t)control->resolve_ms * 1000);
    __atomic_add_fetch(&control->resolved, 1, __ATOMIC_RELAXED);
    __atomic_sub_fetch(&control->resolving, 1, __ATOMIC_RELAXED);
    if (control->resolve_error)
        return control->resolve_error;
    struct addrinfo **end = found;
    for (int32_t place = 0; place < control->addresses && place < MAX_ADDRESSES; place++) {
        char text[INET_ADDRSTRLEN];
        inet_ntop(AF_INET, &control->address[place], text, sizeof text);
        int error = real(text, service, hints, end);
        if (error)
            return error;
        while (*end)
            end = &(*end)->ai_next;
    }
    return control->addresses ? 0 : real(name, service, hints, found);
}
