#define _GNU_SOURCE
/* The copying limit: an echo server of one epoll loop, recv and send, without anything around it.
   Usage: echo PORT. It reads up to 64 KiB at a time; what the kernel does not take waits for EPOLLOUT. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_SIZE = 65536, EVENTS = 1024 };

struct peer { int fd; char *owed; size_t length; };

static int epoll_fd;
static char buffer[READ_SIZE];

static void watch(struct peer *peer, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = peer};
    if (epoll_ctl(epoll_fd, operation, peer->fd, &event) < 0) { perror("epoll_ctl"); exit(1); }
}

static void end(struct peer *peer) {
    close(peer->fd);
    free(peer->owed);
    free(peer);
}

static void flush(struct peer *peer) {
    ssize_t sent = send(peer->fd, peer->owed, peer->length, MSG_NOSIGNAL);
    if (sent < 0) { if (errno != EAGAIN) end(peer); return; }
    peer->length -= sent;
    memmove(peer->owed, peer->owed + sent, peer->length);
    if (!peer->length) watch(peer, EPOLL_CTL_MOD, EPOLLIN);
}

static void receive(struct peer *peer) {
    ssize_t got = recv(peer->fd, buffer, READ_SIZE, 0);
    if (got <= 0) { if (got == 0 || errno != EAGAIN) end(peer); return; }
    ssize_t sent = send(peer->fd, buffer, got, MSG_NOSIGNAL);
    if (sent == got) return;
    if (sent < 0) { if (errno != EAGAIN) { end(peer); return; } sent = 0; }
    if (!peer->owed) peer->owed = malloc(READ_SIZE);
    peer->length = got - sent;
    memcpy(peer->owed, buffer + sent, peer->length);
    watch(peer, EPOLL_CTL_MOD, EPOLLOUT);
}

int main(int argc, char **argv) {
    if (argc != 2) { fprintf(stderr, "usage: echo PORT\n"); return 2; }
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (bind(listener, (void *)&address, sizeof address) < 0 || listen(listener, 65535) < 0) { perror("bind"); return 1; }
    getsockname(listener, (void *)&address, &length);
    printf("Listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    epoll_fd = epoll_create1(0);
    struct peer door = {.fd = listener};
    watch(&door, EPOLL_CTL_ADD, EPOLLIN);
    struct epoll_event events[EVENTS];
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct peer *peer = events[i].data.ptr;
            if (peer != &door) {
                if (events[i].events & EPOLLOUT) flush(peer);
                else receive(peer);
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0) continue;
            peer = calloc(1, sizeof *peer);
            peer->fd = fd;
            watch(peer, EPOLL_CTL_ADD, EPOLLIN);
        }
    }
}
