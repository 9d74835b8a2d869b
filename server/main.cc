#include "server/command_line.h"

int main(int argc, char** argv) { return shoal::RunCommandLine(argc, argv); }
