/* A load generator that neither verifies nor times: one message in flight on each connection, one epoll loop.
   Usage: load PORT CONNECTIONS SIZE SECONDS. Prints the messages that came back and the CPU seconds that took. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { EVENTS = 1024, READ_SIZE = 65536 };

struct peer { int fd; long to_send, to_receive; };

static char out[1 << 20], in[READ_SIZE];

static double cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 5) { fprintf(stderr, "usage: load PORT CONNECTIONS SIZE SECONDS\n"); return 2; }
    int connections = atoi(argv[2]), epoll_fd = epoll_create1(0), yes = 1;
    long size = atol(argv[3]), messages = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct peer *peers = calloc(connections, sizeof *peers);
    for (int i = 0; i < connections; i++) {
        struct peer *peer = &peers[i];
        peer->fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        if (connect(peer->fd, (void *)&address, sizeof address) < 0) { perror("connect"); return 1; }
        fcntl(peer->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN | (size > READ_SIZE ? EPOLLOUT : 0), .data.ptr = peer};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, peer->fd, &event);
        peer->to_send = peer->to_receive = size;
    }
    double end = now() + atof(argv[4]), busy = cpu();
    for (int i = 0; i < connections; i++) peers[i].to_send -= send(peers[i].fd, out, size, MSG_NOSIGNAL);
    struct epoll_event events[EVENTS];
    while (now() < end) {
        int ready = epoll_wait(epoll_fd, events, EVENTS, 100);
        for (int i = 0; i < ready; i++) {
            struct peer *peer = events[i].data.ptr;
            if (events[i].events & EPOLLIN) {
                ssize_t got = recv(peer->fd, in, READ_SIZE, 0);
                if (got == 0) { fprintf(stderr, "the server closed\n"); return 1; }
                if (got > 0) peer->to_receive -= got;
                if (peer->to_receive == 0) {
                    messages++;
                    peer->to_send = peer->to_receive = size;
                }
            }
            if (peer->to_send) {
                ssize_t sent = send(peer->fd, out, peer->to_send, MSG_NOSIGNAL);
                if (sent > 0) {
                    peer->to_send -= sent;
                    struct epoll_event event = {.events = EPOLLIN | (peer->to_send ? EPOLLOUT : 0), .data.ptr = peer};
                    if (peer->to_send || size > READ_SIZE) epoll_ctl(epoll_fd, EPOLL_CTL_MOD, peer->fd, &event);
                }
            }
        }
    }
    printf("%ld %.6f\n", messages, cpu() - busy);
    return 0;
}
