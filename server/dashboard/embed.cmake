# cmake -DOUT=FILE.c -DFOLDER=server/dashboard -DFILES="a;b" -P embed.cmake
# Writes the dashboard's files into a C source: one array each, and the table that dashboard.h declares. Files from elsewhere (../…) go
# by their bare name.
set(arrays "")
set(table "")
set(n 0)
foreach(file IN LISTS FILES)
    string(REGEX REPLACE "^.*\\.([a-z]+)$" "\\1" extension ${file})
    set(type_html "text/html; charset=utf-8")
    set(type_js "text/javascript; charset=utf-8")
    set(type_css "text/css; charset=utf-8")
    set(type_svg "image/svg+xml")
    set(type_txt "text/plain; charset=utf-8") # licences travel with what they are for
    set(type_json "application/json")
    if(NOT DEFINED type_${extension})
        message(FATAL_ERROR "${file}: no Content-Type is known for .${extension}")
    endif()
    file(READ ${FOLDER}/${file} bytes HEX)
    file(SHA256 ${FOLDER}/${file} hash)
    string(SUBSTRING ${hash} 0 16 tag)
    string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}") # lines that tools can read
    string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
    string(APPEND arrays "static const unsigned char file_${n}[] = {\n${bytes}};\n\n")
    string(REGEX REPLACE "^\\.\\./.*/" "" name ${file})
    string(APPEND table "    {\"${name}\", \"${type_${extension}}\", \"\\\"${tag}\\\"\", file_${n}, sizeof file_${n}},\n")
    math(EXPR n "${n} + 1")
endforeach()
file(WRITE ${OUT} "/* Made from server/dashboard/ by embed.cmake. */
#include \"dashboard.h\"

${arrays}const srv_asset srv_assets[] = {
${table}};
const size_t srv_n_assets = ${n};
")
