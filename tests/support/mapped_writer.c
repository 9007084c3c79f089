/* Maps a file and writes to it through the mapping alone, a byte for each line "OFFSET BYTE" of its input. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct stat stat;
    int file = argc == 2 ? open(argv[1], O_RDWR) : -1;
    if (file < 0 || fstat(file, &stat) != 0) return 1;
    volatile char *bytes = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED) return 1;
    close(file);
    long offset;
    int byte;
    for (puts("mapped"), fflush(stdout); scanf("%ld %d", &offset, &byte) == 2; fflush(stdout)) {
        bytes[offset] = byte;
        puts("written");
    }
    return 0;
}
