/* Echo server on libuv: a loop per worker thread, each with a listening
 * socket of its own on the port (SO_REUSEPORT).
 *
 * One receive buffer per loop. A reply goes out with uv_try_write; only what
 * it leaves over is copied and queued, and reading stops until it is gone.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#define BACKLOG_CONNECTIONS 4096
#define MARK_BLOCK 0xF1
#define MARK_SPIN 0xF2
#define STALL_NS 10000000ull

static size_t buffer_bytes = 65536;
static bool stall_marks = false;

/* One of each per loop, that is per thread. */
static _Thread_local char *receive_buffer;

typedef struct {
    uv_write_t request;
    uv_stream_t *stream;
    char bytes[];
} unsent_t;

static void fail(const char *what, int code) {
    fprintf(stderr, "%s: %s\n", what, code < 0 ? uv_strerror(code) : "failed");
    exit(1);
}

static void handle(const char *chunk) {
    unsigned char mark = (unsigned char)chunk[0];
    if (mark == MARK_BLOCK) {
        struct timespec time = {0, (long)STALL_NS};
        nanosleep(&time, NULL);
    } else if (mark == MARK_SPIN) {
        uint64_t start = uv_hrtime();
        while (uv_hrtime() - start < STALL_NS) {
        }
    }
}

static void on_close(uv_handle_t *handle) { free(handle); }

static void close_stream(uv_stream_t *stream) {
    if (!uv_is_closing((uv_handle_t *)stream)) uv_close((uv_handle_t *)stream, on_close);
}

static void on_allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
    (void)handle, (void)suggested;
    *buffer = uv_buf_init(receive_buffer, (unsigned)buffer_bytes);
}

static void on_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buffer);

static void on_written(uv_write_t *request, int status) {
    unsent_t *unsent = (unsent_t *)request;
    uv_stream_t *stream = unsent->stream;
    free(unsent);
    if (status < 0) {
        close_stream(stream);
    } else if (!uv_is_closing((uv_handle_t *)stream)) {
        uv_read_start(stream, on_allocate, on_read);
    }
}

static void write_later(uv_stream_t *stream, const char *bytes, size_t length) {
    unsent_t *unsent = malloc(sizeof *unsent + length);
    if (!unsent) return close_stream(stream);
    memcpy(unsent->bytes, bytes, length);
    unsent->stream = stream;
    uv_read_stop(stream);
    uv_buf_t buffer = uv_buf_init(unsent->bytes, (unsigned)length);
    if (uv_write(&unsent->request, stream, &buffer, 1, on_written) < 0) {
        free(unsent);
        close_stream(stream);
    }
}

static void on_read(uv_stream_t *stream, ssize_t length, const uv_buf_t *buffer) {
    if (length == 0) return; /* nothing after all */
    if (length < 0) return close_stream(stream);
    if (stall_marks) handle(buffer->base);
    uv_buf_t reply = uv_buf_init(buffer->base, (unsigned)length);
    int sent = uv_try_write(stream, &reply, 1);
    if (sent == UV_EAGAIN) sent = 0;
    if (sent < 0) return close_stream(stream);
    if (sent < length) write_later(stream, buffer->base + sent, (size_t)(length - sent));
}

static void on_connection(uv_stream_t *listener, int status) {
    if (status < 0) return;
    uv_tcp_t *client = malloc(sizeof *client);
    if (!client) return;
    uv_tcp_init(listener->loop, client);
    if (uv_accept(listener, (uv_stream_t *)client) == 0) {
        uv_tcp_nodelay(client, 1);
        uv_read_start((uv_stream_t *)client, on_allocate, on_read);
    } else {
        uv_close((uv_handle_t *)client, on_close);
    }
}

static int listening_socket(struct sockaddr_in *address) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket", 1);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)address, sizeof *address) != 0) fail("bind", 1);
    if (listen(fd, BACKLOG_CONNECTIONS) != 0) fail("listen", 1);
    socklen_t size = sizeof *address;
    getsockname(fd, (struct sockaddr *)address, &size);
    return fd;
}

static void *serve(void *argument) {
    uv_loop_t loop;
    uv_tcp_t listener;
    int fd = (int)(intptr_t)argument, code;
    receive_buffer = malloc(buffer_bytes);
    if (!receive_buffer || uv_loop_init(&loop) != 0) fail("set-up", 1);
    uv_tcp_init(&loop, &listener);
    if ((code = uv_tcp_open(&listener, fd)) != 0) fail("open", code);
    code = uv_listen((uv_stream_t *)&listener, BACKLOG_CONNECTIONS, on_connection);
    if (code != 0) fail("listen", code);
    uv_run(&loop, UV_RUN_DEFAULT);
    return NULL;
}

int main(int count, char **arguments) {
    int workers = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 1; i < count; i++) {
        const char *name = arguments[i], *value = i + 1 < count ? arguments[i + 1] : "";
        if (strcmp(name, "--stall-marks") == 0) {
            stall_marks = true;
            continue;
        } else if (strcmp(name, "--workers") == 0) {
            workers = atoi(value);
        } else if (strcmp(name, "--buffer-bytes") == 0) {
            buffer_bytes = (size_t)atoll(value);
        } else if (strcmp(name, "--listen") == 0) {
            char host[64];
            int port;
            if (sscanf(value, "%63[^:]:%d", host, &port) != 2 ||
                inet_pton(AF_INET, host, &address.sin_addr) != 1)
                fail(value, 1);
            address.sin_port = htons((uint16_t)port);
        } else {
            fail(name, 1);
        }
        i++;
    }
    if (workers < 1 || workers > 256 || buffer_bytes == 0) fail("options", 1);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);

    int sockets[256];
    for (int i = 0; i < workers; i++) sockets[i] = listening_socket(&address);
    char text[64];
    inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
    printf("listening on %s:%d\n", text, ntohs(address.sin_port));
    fflush(stdout);
    for (int i = 1; i < workers; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)sockets[i]) != 0)
            fail("thread", 1);
    }
    serve((void *)(intptr_t)sockets[0]);
    return 0;
}
