// Preloaded into a stage under test: counts the calls that change files under one folder, and makes the k-th one fail.
// mode 'k': SIGKILL before the call; 'h': write half, then SIGKILL; 'e': the k-th and all later calls fail with an errno.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static char mode;
static long fail_at, count;
static int fail_errno;

void fault_arm(const char *under, char how, long k, int error) {
  snprintf(folder, sizeof folder, "%s", under);
  mode = how; fail_at = k; fail_errno = error; count = 0;
}
long fault_count(void) { return count; }

static int under_fd(int fd) {
  if (!folder[0]) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return strncmp(path, folder, strlen(folder)) == 0;
}
static int under_path(const char *path) { return folder[0] && strncmp(path, folder, strlen(folder)) == 0; }

// 1: fail with errno set; 2: do half of it, then die; 0: go on. Does not return when the process is to die.
static int hit(void) {
  long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  if (mode == 'e' && now >= fail_at) { errno = fail_errno; return 1; }
  if (mode == 'k' && now == fail_at) { kill(getpid(), SIGKILL); for (;;) pause(); }
  if (mode == 'h' && now == fail_at) return 2;
  return 0;
}
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t);
  if (under_fd(fd)) { int h = hit(); if (h == 1) return -1; if (h == 2) { if (real(fd, data, size / 2) < 0) {} die(); } }
  return real(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
  if (under_fd(fd)) { int h = hit(); if (h == 1) return -1; if (h == 2) die(); }
  return real(fd, data, size, at);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int n) {
  REAL(ssize_t, writev, int, const struct iovec *, int);
  if (under_fd(fd)) { int h = hit(); if (h == 1) return -1; if (h == 2) die(); }
  return real(fd, parts, n);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
  if (under_fd(out)) { int h = hit(); if (h == 1) return -1; if (h == 2) die(); }
  return real(in, from, out, to, size, flags);
}
int fsync(int fd) {
  REAL(int, fsync, int);
  if (under_fd(fd)) { int h = hit(); if (h == 1) return -1; if (h == 2) die(); }
  return real(fd);
}
int ftruncate64(int fd, off64_t size) {
  REAL(int, ftruncate64, int, off64_t);
  if (under_fd(fd)) { int h = hit(); if (h == 1) return -1; if (h == 2) die(); }
  return real(fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int mkdir(const char *path, mode_t bits) {
  REAL(int, mkdir, const char *, mode_t);
  if (under_path(path)) { int h = hit(); if (h == 1) return -1; if (h == 2) die(); }
  return real(path, bits);
}
int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *);
  if (under_path(to)) { int h = hit(); if (h == 1) return -1; if (h == 2) die(); }
  return real(from, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(int, renameat2, int, const char *, int, const char *, unsigned);
  if (under_path(to)) { int h = hit(); if (h == 1) return -1; if (h == 2) die(); }
  return real(a, from, b, to, flags);
}
