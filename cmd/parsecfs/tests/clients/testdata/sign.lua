-- Signs in one of Lua's ways: lua5.4 sign.lua HOW SIGN MESSAGE SIGNATURE
local how, sign, message, signature = table.unpack(arg)

local function slurp(path)
	local f <close> = assert(io.open(path, "rb"))
	return assert(f:read("a"))
end

local function spew(path, data)
	local f = assert(io.open(path, "wb"))
	assert(f:write(data))
	assert(f:close())
end

if how == "descriptor" then
	local f = assert(io.open(sign, "r+b"))
	assert(f:write(slurp(message)))
	assert(f:seek("cur", 0)) -- ISO C wants it between writing and reading; it flushes too
	spew(signature, assert(f:read("a")))
	f:close()
elseif how == "unbuffered" then
	local f = assert(io.open(sign, "r+b"))
	f:setvbuf("no")
	assert(f:write(slurp(message)))
	assert(f:seek("set", 0))
	spew(signature, assert(f:read(8192)))
	f:close()
elseif how == "files" then
	spew(sign, slurp(message))
	spew(signature, slurp(sign))
elseif how == "slot" then
	local slot = sign .. ".d/lua"
	spew(slot, slurp(message))
	spew(signature, slurp(slot))
	assert(os.remove(slot))
else
	error("no such way: " .. how)
end
